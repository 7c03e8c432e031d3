"""UniRL's reward service: what it is asked and which of its answers are scores."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lasro.errors import WireError
from lasro.wire import Protocol
from lasro_reward_api.protocols import CODECS
from lasro_reward_api.protocols.base import Batch, HttpRequest, ItemResult, Rejected

CODEC = CODECS[Protocol.UNIRL]
BATCH = Batch(["a cat", "a dog"], [b"\x89PNG", b"\xff\xd8\xff"], [{"a": [1, None]}, None])


def decoded(reply: Any, count: int, settings: dict[str, Any]) -> list[ItemResult]:
    return CODEC.decode("application/json", json.dumps(reply).encode(), count, settings)


def asked(batch: Batch, settings: dict[str, Any]) -> tuple[HttpRequest, Any]:
    CODEC.check(settings)
    request = CODEC.encode(batch, settings)
    return request, json.loads(request.content)


def test_unirl_asks_as_its_own_client_does() -> None:
    """Bug: UniRL's service answers 422 to a field of another name."""
    request, body = asked(BATCH, {"reward": "clip"})
    assert request.path == "/score"
    assert body["requests"][0] == {
        "history": [{"text": "a cat", "image_b64": "iVBORw=="}],
        "required_rewards": ["clip"],
        "metadata": {"a": [1, None]},
    }
    assert body["requests"][1]["metadata"] is None


def test_unirl_says_which_metadata_it_cannot_carry() -> None:
    """Bug: metadata that is no object comes back as a 422 that says nothing."""
    with pytest.raises(WireError, match="got list, expected an object or null"):
        asked(Batch(["p"], [b""], [[1]]), {"reward": "clip"})


@pytest.mark.parametrize(
    ("metric", "reply", "answers"),
    [
        (None, {"results": [{"r": {"r": 1}}, {"r": {"r": 2.5}}]}, [1.0, 2.5]),
        ("b", {"results": [{"r": {"a": 1, "b": 3}}, {"r": {"b": 2}}], "errors": [{}, {}]}, [3.0, 2.0]),
        (None, {"results": [{}, {"r": {"r": 2}}], "errors": [{"r": "OOM"}, {}]}, [Rejected("OOM"), 2.0]),
    ],
)
def test_unirl_replies_that_are_taken(metric: str | None, reply: Any, answers: list[Any]) -> None:
    """Bug: scores go to the wrong image or metric, or one failed item takes the others with it."""
    assert decoded(reply, 2, {"reward": "r", "metric": metric}) == answers


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ({"results": [{"r": {"r": 1}}]}, "results: got 1"),
        ({"results": [{"r": {"r": 1}}] * 2, "errors": [{}]}, "errors: got 1"),
        ({"results": [{"r": {"r": 1}}, {}]}, r"results\[1\].r: got NoneType and no error"),
        ({"results": [{"r": {"a": 1, "b": 2}}] * 2}, r"got the metrics \['a', 'b'\].*mapping.metric"),
        ({"results": [{"r": {"r": 1}}] * 2, "errors": [{"r": "x"}, {}]}, "got a value beside an error"),
        ({"results": [{"r": {"r": "0.3"}}] * 2}, "got str, expected a number"),
    ],
)
def test_unirl_replies_that_are_refused(reply: Any, reason: str) -> None:
    """Bug: the wrong metric is trained on, or a missing reward passes for a number."""
    with pytest.raises(WireError, match=reason):
        decoded(reply, 2, {"reward": "r"})
