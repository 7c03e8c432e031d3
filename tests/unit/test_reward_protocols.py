"""The decoders of reward replies, fed anything at all."""

from __future__ import annotations

import json
import math
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasro.errors import ConfigError, WireError
from lasro.wire import MSGPACK_TYPE, Protocol
from lasro_reward_api.protocols import SPEAKERS, speaker
from lasro_reward_api.protocols.speaker import Batch, Rejected

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=5)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner))
replies = st.fixed_dictionaries(
    {}, optional={"scores": st.lists(values, max_size=4) | values, "rewards": values, "errors": values}
)


def check_answers(protocol: Protocol, content_type: str, body: bytes) -> None:
    try:
        answers = SPEAKERS[protocol].decode(content_type, body, 3)
    except WireError:
        return
    assert len(answers) == 3
    for answer in answers:
        assert isinstance(answer, Rejected) or (type(answer) is float and math.isfinite(answer))


@given(st.sampled_from(sorted(SPEAKERS)), replies | values)
def test_any_json_is_three_finite_numbers_or_refused(protocol: Protocol, reply: Any) -> None:
    """Bug: some reply decodes to fewer numbers, to a bool or to NaN, or raises something else."""
    check_answers(protocol, "application/json", json.dumps(reply).encode())


@given(st.sampled_from(sorted(SPEAKERS)), st.sampled_from(["application/json", MSGPACK_TYPE, ""]), st.binary())
def test_any_bytes_are_numbers_or_refused(protocol: Protocol, content_type: str, body: bytes) -> None:
    """Bug: junk escapes as UnicodeDecodeError or a msgpack exception."""
    check_answers(protocol, content_type, body)


@given(replies)
def test_any_msgpack_is_three_finite_numbers_or_refused(reply: Any) -> None:
    """Bug: msgpack's own types (ext, timestamps, bytes) pass for numbers."""
    check_answers(Protocol.NATIVE, MSGPACK_TYPE, msgpack.packb(reply) or b"")


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
    assert SPEAKERS[Protocol.NATIVE].decode("application/json", body, 3) == answers


def test_native_asks_as_documented() -> None:
    """Bug: the request drifts from what users wrote their endpoints for."""
    parts = SPEAKERS[Protocol.NATIVE].encode(Batch(["p"], [b"\x89PNG"], [{"a": [1, None]}]), {})
    assert json.loads(parts.content) == {"prompts": ["p"], "images": ["iVBORw=="], "metadata": [{"a": [1, None]}]}
    assert parts.path == ""


def test_flow_factory_asks_as_its_own_client_does() -> None:
    """Bug: an existing Flow-Factory server does not plug in unchanged."""
    parts = SPEAKERS[Protocol.FLOW_FACTORY].encode(Batch(["p"], [b"\x89PNG"], [None]), {})
    assert json.loads(parts.content) == {"prompt": ["p"], "image": ["iVBORw=="]}
    assert parts.path == "/compute"
    with pytest.raises(WireError, match="reports an error"):
        SPEAKERS[Protocol.FLOW_FACTORY].decode("application/json", b'{"rewards": [1], "error": "CUDA"}', 1)


@pytest.mark.parametrize("protocol", sorted(set(Protocol) - set(SPEAKERS)))
def test_protocols_that_are_not_there_are_named_with_those_that_are(protocol: Protocol) -> None:
    """Bug: an unsupported protocol is accepted and every call fails."""
    with pytest.raises(ConfigError, match=r"supported are flow-factory, native"):
        speaker(protocol)
