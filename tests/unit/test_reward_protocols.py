"""Requests and replies of the reward protocols: as their public files have them, and fed anything at all."""

from __future__ import annotations

import json
import math
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lasro.errors import ConfigError, WireError
from lasro.wire import MSGPACK_TYPE, NativeRequest, Protocol, from_json
from lasro_reward_api.protocols import CODECS
from lasro_reward_api.protocols.base import Batch, HttpRequest, ItemResult, Rejected

MODEL = {"model": "judge"}
YES_NO = MODEL | {"answers": {"yes": 1, "no": 0}}
EACH = {"request": {"items": {"$each": {"p": "{{prompt}}", "i": "{{image}}"}}}, "scores": "scores", "errors": "errors"}
ONE = {"request": {"i": "{{image}}"}, "scores": "scores"}
CASES: list[tuple[Protocol, dict[str, Any]]] = [
    (Protocol.NATIVE, {}),
    (Protocol.FLOW_FACTORY, {}),
    (Protocol.UNIRL, {"reward": "clip"}),
    (Protocol.OPENAI_CHAT, MODEL),
    (Protocol.OPENAI_CHAT, MODEL | {"reasoning": True, "scale": [-1, 1]}),
    (Protocol.OPENAI_CHAT, YES_NO),
    (Protocol.OPENAI_CHAT, MODEL | {"rubric": "?", "words": {"no": 0, "why": 1}, "score": "a"}),
    (Protocol.OPENAI_CHAT, MODEL | {"rubric": "?", "pattern": "([0-9]+)"}),
    (Protocol.OIP_V2, MODEL),
    (Protocol.MAPPING, EACH),
    (Protocol.MAPPING, EACH | {"scores": "scores[*].clip", "errors": None}),
    (Protocol.MAPPING, ONE),
    (Protocol.MAPPING, EACH | {"text": True, "scale": [0, 10]}),
    (Protocol.MAPPING, EACH | {"words": {"a": 1, "b": 2}}),
]
JSON = "application/json"
BATCH = Batch(["a cat", "a dog"], [b"\x89PNG", b"\xff\xd8\xff"], [{"a": [1, None]}, None])
FIRST = Batch(BATCH.prompts[:1], BATCH.images[:1], BATCH.metadata[:1])

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner))


def replies() -> st.SearchStrategy[Any]:
    """Near what the servers answer, so that more than the outermost check is reached."""
    score = scalars | st.fixed_dictionaries(
        {}, optional={"clip": scalars | st.dictionaries(st.text(max_size=2), scalars)}
    )
    scores = st.lists(score, min_size=1, max_size=4) | values
    token = st.fixed_dictionaries({"token": st.sampled_from(["Yes", " no", "x"]), "logprob": st.floats() | scalars})
    logprobs = st.fixed_dictionaries({"content": st.lists(st.fixed_dictionaries({"top_logprobs": st.lists(token)}))})
    message = st.fixed_dictionaries(
        {"content": st.sampled_from(["7", "-0.5", "1e3", "why\n0.5", "nan", "", "No."]) | values},
        optional={"refusal": values},
    )
    choice = st.fixed_dictionaries(
        {"message": message, "finish_reason": st.sampled_from(["stop", "length"])},
        optional={"logprobs": logprobs | values},
    )
    output = st.fixed_dictionaries(
        {"name": st.just("score"), "datatype": st.sampled_from(["FP32", "BYTES", "INT8"]) | values, "data": scores},
        optional={"shape": st.sampled_from([[3], [3, 1], [1]]) | values},
    )
    return st.fixed_dictionaries(
        {},
        optional={
            "scores": scores,
            "rewards": scores,
            "results": scores,
            "errors": scores,
            "choices": st.lists(choice, min_size=1, max_size=2) | values,
            "outputs": st.lists(output, max_size=2) | values,
        },
    )


def decoded(protocol: Protocol, reply: Any, count: int, settings: dict[str, Any]) -> list[ItemResult]:
    return CODECS[protocol].decode(JSON, json.dumps(reply).encode(), count, settings)


def asked(protocol: Protocol, batch: Batch, settings: dict[str, Any]) -> tuple[HttpRequest, Any]:
    CODECS[protocol].check(settings)
    request = CODECS[protocol].encode(batch, settings)
    return request, json.loads(request.content)


def refused_briefly(error: Exception) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 600


def check_answers(case: tuple[Protocol, dict[str, Any]], content_type: str, body: bytes) -> None:
    protocol, settings = case
    count = 1 if CODECS[protocol].one_image(settings) else 3
    try:
        answers = CODECS[protocol].decode(content_type, body, count, settings)
    except WireError as error:
        refused_briefly(error)
        return
    assert len(answers) == count
    for answer in answers:
        assert isinstance(answer, Rejected) or (type(answer) is float and math.isfinite(answer))


@given(st.sampled_from(CASES), replies() | values)
def test_any_json_is_finite_numbers_or_refused(case: tuple[Protocol, dict[str, Any]], reply: Any) -> None:
    """Bug: some reply decodes to fewer numbers, to a bool or to NaN, or raises something else."""
    check_answers(case, JSON, json.dumps(reply).encode())


@given(st.sampled_from(CASES), st.sampled_from([JSON, MSGPACK_TYPE, ""]), st.binary())
def test_any_bytes_are_numbers_or_refused(
    case: tuple[Protocol, dict[str, Any]], content_type: str, body: bytes
) -> None:
    """Bug: junk escapes as UnicodeDecodeError or a msgpack exception."""
    check_answers(case, content_type, body)


@given(replies())
def test_any_msgpack_is_three_finite_numbers_or_refused(reply: Any) -> None:
    """Bug: msgpack's own types (ext, timestamps, bytes) pass for numbers."""
    check_answers((Protocol.NATIVE, {}), MSGPACK_TYPE, msgpack.packb(reply) or b"")


@settings(max_examples=50)
@example(Protocol.FLOW_FACTORY, {f"{i}" * 8: None for i in range(100)})
@given(st.sampled_from(sorted(Protocol)), st.dictionaries(st.text(max_size=8), values) | st.dictionaries(
    st.sampled_from(["model", "reward", "answers", "scale", "inputs", "request", "scores", "parameters"]), values
))  # fmt: skip
def test_any_settings_are_taken_or_refused_as_configuration(protocol: Protocol, settings: dict[str, Any]) -> None:
    """Bug: odd settings answer 500 at registration, or are taken and fail at every call."""
    try:
        CODECS[protocol].check(settings)
    except ConfigError as error:
        refused_briefly(error)
        return
    batch = FIRST if CODECS[protocol].one_image(settings) else BATCH
    assert CODECS[protocol].encode(batch, settings).content


@pytest.mark.parametrize("protocol", sorted(Protocol))
def test_every_protocol_is_there_and_refuses_what_it_does_not_know(protocol: Protocol) -> None:
    """Bug: a protocol that the contract names is missing, or a misspelt setting has no effect."""
    with pytest.raises(ConfigError, match="nonsense"):
        CODECS[protocol].check({"nonsense": 1})


@pytest.mark.parametrize(
    ("body", "answers"),
    [
        (b'{"scores": [1, -2.5, 3e2]}', [1.0, -2.5, 300.0]),
        (b'{"scores": [1, 2, 3], "errors": null, "model": "x"}', [1.0, 2.0, 3.0]),
        (b'{"scores": [1, null, 3], "errors": [null, "blurred", null]}', [1.0, Rejected("blurred"), 3.0]),
    ],
)
def test_native_replies_that_are_taken(body: bytes, answers: list[Any]) -> None:
    """Bug: a correct scorer is refused."""
    assert CODECS[Protocol.NATIVE].decode(JSON, body, 3, {}) == answers


def test_native_asks_as_documented() -> None:
    """Bug: the request drifts from what users wrote their endpoints for."""
    request, body = asked(Protocol.NATIVE, Batch(["p"], [b"\x89PNG"], [{"a": [1, None]}]), {})
    assert body == {"prompts": ["p"], "images": ["iVBORw=="], "metadata": [{"a": [1, None]}]}
    assert request.path == ""


finite = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(finite | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


@given(st.lists(st.tuples(st.text(), st.binary(), json_values), min_size=1, max_size=3))
def test_native_json_is_the_message_of_the_contract(items: list[tuple[str, bytes, Any]]) -> None:
    """Bug: put together by hand, the body is no JSON for odd prompts, or another message than wire.NativeRequest."""
    prompts, images, metadata = (list(column) for column in zip(*items, strict=True))
    request = CODECS[Protocol.NATIVE].encode(Batch(prompts, images, metadata), {})
    assert from_json(NativeRequest, request.content) == NativeRequest(prompts=prompts, images=images, metadata=metadata)


def test_flow_factory_asks_as_its_own_client_does() -> None:
    """Bug: an existing Flow-Factory server does not plug in unchanged."""
    request, body = asked(Protocol.FLOW_FACTORY, Batch(["p"], [b"\x89PNG"], [None]), {})
    assert body == {"prompt": ["p"], "image": ["iVBORw=="]}
    assert request.path == "/compute"
    with pytest.raises(WireError, match="reports an error"):
        decoded(Protocol.FLOW_FACTORY, {"rewards": [1], "error": "CUDA"}, 1, {})
