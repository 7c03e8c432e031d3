"""What processes send each other: values of a declared type, and errors."""

from __future__ import annotations

import pickle
from typing import Any

import msgpack
import pytest
import torch

from lasro import errors, wire
from lasro.errors import BudgetError, LasroError, ServiceError, StorageError, WireError
from lasro.functional.score_normalisation import Moments
from lasro.training.group_summary import Distances, GroupSummary
from lasro.training.process_codec import CpuTensor, decode, encode, encode_error
from lasro.training.prompts import Prompt
from lasro_client.evaluation.result import Evaluation
from lasro_client.run.collect import Collected
from lasro_client.run.progress import Progress
from lasro_client.services.connect import Urls

ITEM = wire.ScoredItem(scores={"r": wire.RewardValue(score=0.1, status=wire.Status.OK)}, total=None)
STATUS = wire.GroupStatus(group_id="g", state=wire.GroupState.SCORED, items=[ITEM], reward_calls=1)
SUMMARY = GroupSummary(
    Prompt("p", {"any": [1, None]}),
    [1, 2],
    [False, True],
    {1: Distances([0.1], []), 2: Distances([], [0.2])},
)
EVALUATION = Evaluation(prompts=["p"], seed=3, rewards={"r": {1: [0.5], 2: [None]}})


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, None),
        (None, int | None),
        (15, int | None),
        ({"rounds": 3, "ended": None, "rewards": {"r": [0.1]}}, dict[str, Any] | None),
        (Urls("http://a", "http://b"), Urls),
        (Collected([SUMMARY], [STATUS]), Collected),
        (EVALUATION, Evaluation),
        ((Progress(3, 1.5, ended="why"), None), tuple[Progress, dict[str, CpuTensor] | None]),
        ((4, [None, Moments(0.1, 1e-300, 2, 1.0, 0.5, 0.0)], 7), tuple[int, list[Moments | None], int]),
    ],
)
def test_what_a_run_sends_arrives_as_it_was(value: object, kind: Any) -> None:
    """Guards against tuples that arrive as lists, messages as dicts, numbers as text, and floats that are rounded."""
    arrived = decode(encode(value, kind), kind)
    assert arrived == value
    assert type(arrived) is type(value)


def test_tensors_keep_shape_and_type() -> None:
    """Guards against an optimiser whose scalar counts arrive as vectors, and scores that are rounded to float32."""
    tensors = {
        "step": torch.tensor(3.0),
        "half": torch.ones(2, 3, dtype=torch.bfloat16),
        "part": torch.arange(6, dtype=torch.float64).reshape(2, 3)[:, 1:],
        "not finite": torch.tensor([float("nan"), float("inf")]),
    }
    arrived = decode(encode(tensors, dict[str, CpuTensor]), dict[str, CpuTensor])
    for name, tensor in tensors.items():
        assert (arrived[name].dtype, arrived[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(arrived[name].nan_to_num(), tensor.nan_to_num())


@pytest.mark.parametrize(
    "error", [BudgetError("spent"), StorageError("no room"), ServiceError(409, "conflict", "exists"), LasroError("x")]
)
def test_errors_are_raised_as_what_they_are(error: LasroError) -> None:
    """Bug: an error of a service could not be taken apart and made again, so the other processes waited or crashed."""
    with pytest.raises(LasroError) as raised:
        decode(encode_error(error), int)
    assert type(raised.value) is type(error)
    assert str(raised.value) == str(error)
    assert vars(raised.value) == vars(error)


def test_every_error_can_be_sent() -> None:
    """Guards against a new class of error whose constructor takes something else, as ServiceError's does."""
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, LasroError) and kind is not ServiceError:
            with pytest.raises(kind, match=r"^why$"):
                decode(encode_error(kind("why")), None)


class Own(BudgetError):
    """An error that is not in lasro.errors."""


def test_an_error_of_another_module_arrives_as_its_nearest_known_class() -> None:
    """Guards against importing what a peer names."""
    with pytest.raises(BudgetError) as raised:
        decode(encode_error(Own("spent")), int)
    assert type(raised.value) is BudgetError


@pytest.mark.parametrize(
    "body",
    [
        b"",
        pickle.dumps(3),
        msgpack.packb([1]),
        msgpack.packb({"other": 1}),
        msgpack.packb({"value": "three"}),
    ],
)
def test_anything_else_is_refused(body: bytes) -> None:
    """Guards against unpickling, and against values of another type than the one declared."""
    with pytest.raises(WireError, match=r"^processes: "):
        decode(body, int)


def test_what_cannot_be_sent_is_named() -> None:
    """Guards against a process that crashes with a traceback of msgpack while the others wait."""
    with pytest.raises(WireError, match="object cannot be sent as"):
        encode(object(), Any)
