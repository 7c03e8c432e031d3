"""The Open Inference Protocol: the tensors that go out, and which of those that come back are scores."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from lasro.errors import ConfigError, WireError
from lasro.wire import Protocol
from lasro_reward_api.protocols import CODECS
from lasro_reward_api.protocols.base import Batch, HttpRequest, ItemResult

CODEC = CODECS[Protocol.OIP_V2]
BATCH = Batch(["a cat", "a dog"], [b"\x89PNG", b"\xff\xd8\xff"], [{"a": [1, None]}, None])
MODEL = {"model": "judge"}


def decoded(reply: Any, count: int, settings: dict[str, Any]) -> list[ItemResult]:
    return CODEC.decode("application/json", json.dumps(reply).encode(), count, settings)


def asked(batch: Batch, settings: dict[str, Any]) -> tuple[HttpRequest, Any]:
    CODEC.check(settings)
    request = CODEC.encode(batch, settings)
    return request, json.loads(request.content)


TRITON: dict[str, Any] = {
    "model": "aesthetic",
    "version": "2",
    "inputs": [
        {"name": "IMAGE", "holds": "images", "parameters": {"content_type": "base64"}},
        {"name": "EXTRA", "holds": "metadata"},
    ],
    "output": "OUT",
    "column": True,
}


def tensor(data: Any, shape: Any = (2,), datatype: str = "FP32", name: str = "score") -> dict[str, Any]:
    return {"model_name": "judge", "outputs": [{"name": name, "datatype": datatype, "shape": shape, "data": data}]}


def test_oip_asks_as_the_specification_has_it() -> None:
    """Bug: KServe or Triton refuses the tensors."""
    request, body = asked(BATCH, MODEL)
    assert request.path == "/v2/models/judge/infer"
    assert body == {
        "inputs": [
            {"name": "prompt", "shape": [2], "datatype": "BYTES", "data": ["a cat", "a dog"]},
            {"name": "image", "shape": [2], "datatype": "BYTES", "data": ["iVBORw==", "/9j/"]},
        ],
        "outputs": [{"name": "score"}],
    }
    request, body = asked(BATCH, TRITON)
    assert request.path == "/v2/models/aesthetic/versions/2/infer"
    assert [entry["shape"] for entry in body["inputs"]] == [[2, 1], [2, 1]]
    assert body["inputs"][0]["parameters"] == {"content_type": "base64"}
    assert body["inputs"][1]["data"] == ['{"a": [1, null]}', "null"]
    assert body["outputs"] == [{"name": "OUT"}]


@pytest.mark.parametrize(
    ("reply", "answers"),
    [
        (tensor([0.5, 1]), [0.5, 1.0]),
        (tensor([[0.5], [1]], [2, 1]), [0.5, 1.0]),
        (tensor([0.5, 1], [2, 1], "FP64"), [0.5, 1.0]),
        (tensor([3, 4], [2], "INT64"), [3.0, 4.0]),
    ],
)
def test_oip_replies_that_are_taken(reply: Any, answers: list[float]) -> None:
    """Bug: one of the two ways in which the specification lets a tensor be written is refused."""
    assert decoded(reply, 2, MODEL) == answers


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (tensor([0.5]), "got 1 elements"),
        (tensor([0.5], [1]), r"got shape \[1\], expected \[2\] or \[2, 1\]"),
        (tensor([0.5, 1], [1, 2]), r"got shape \[1, 2\]"),
        (tensor([[0.5, 1], [1, 2]], [2, 2]), r"got shape \[2, 2\]"),
        (tensor([[0.5], [1]], [2]), r"score\[0\]: got list"),
        (tensor(["0.5", "1"], datatype="BYTES"), "got datatype BYTES"),
        (tensor([True, False], datatype="BOOL"), "got datatype BOOL"),
        (tensor(["0.5", "1"]), "got str, expected a number"),
        (tensor([0.5, math.nan]), "expected a finite number"),
        (tensor(None), "got no list as data"),
        (tensor([0.5, 1], name="logits"), r"got the names \['logits'\], expected 'score' once"),
        ({"outputs": tensor([1, 2])["outputs"] * 2}, "expected 'score' once"),
        ({"error": "model not ready"}, "reports an error"),
    ],
)
def test_oip_replies_that_are_refused(reply: Any, reason: str) -> None:
    """Bug: logits of several classes, a transposed tensor or another output pass for the scores."""
    with pytest.raises(WireError, match=reason):
        decoded(reply, 2, MODEL)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"model": "../admin"}, "mapping.model: got '../admin', expected text that matches"),
        (MODEL | {"inputs": [{"name": "p", "holds": "prompts"}]}, "mapping.inputs: got none that holds images"),
        (MODEL | {"inputs": [{"name": "i", "holds": "images"}] * 2}, r"got the names \['i', 'i'\]"),
        (MODEL | {"inputs": [{"name": "i", "holds": "pixels"}]}, "mapping.inputs.0.holds: got 'pixels', expected"),
    ],
)
def test_settings_of_a_model_that_cannot_work_are_refused(settings: Any, reason: str) -> None:
    """Bug: a model name leads to another path of the server, or the model never sees the image."""
    with pytest.raises(ConfigError, match=reason):
        CODEC.check(settings)
