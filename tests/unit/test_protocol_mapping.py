"""Requests by template and scores by path."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from lasro.errors import ConfigError, WireError
from lasro.wire import Protocol
from lasro_reward_api.protocols import CODECS
from lasro_reward_api.protocols.base import Batch, HttpRequest, ItemResult, Rejected

CODEC = CODECS[Protocol.MAPPING]
BATCH = Batch(["a cat", "a dog"], [b"\x89PNG", b"\xff\xd8\xff"], [{"a": [1, None]}, None])
FIRST = Batch(["a cat"], [b"\x89PNG"], [{"a": [1, None]}])
EACH = {"request": {"$each": "{{image}}"}, "scores": "scores"}
ONE = {"request": {"i": "{{image}}"}, "scores": "scores"}


def decoded(reply: Any, count: int, settings: dict[str, Any]) -> list[ItemResult]:
    return CODEC.decode("application/json", json.dumps(reply).encode(), count, settings)


def asked(batch: Batch, settings: dict[str, Any]) -> tuple[HttpRequest, Any]:
    CODEC.check(settings)
    request = CODEC.encode(batch, settings)
    return request, json.loads(request.content)


def test_a_template_is_filled_for_a_batch_or_for_one_image() -> None:
    """Bug: metadata becomes text, or a placeholder within a prompt is filled in too."""
    batch = Batch(["{{image}}", "b"], BATCH.images, [{"k": {"n": 3}}, {"k": {"n": None}}])
    item = {"t": "<{{prompt}}>", "n": "{{metadata.k.n}}", "s": "n={{metadata.k.n}}", "url": "{{image_type}};{{image}}"}
    settings = {"request": {"top": 2, "items": {"$each": item}}, "scores": "s"}
    request, body = asked(batch, settings)
    assert request.path == ""
    assert body["top"] == 2
    assert body["items"][0] == {"t": "<{{image}}>", "n": 3, "s": "n=3", "url": "image/png;iVBORw=="}
    assert body["items"][1] == {"t": "<b>", "n": None, "s": "n=null", "url": "image/jpeg;/9j/"}
    assert not CODEC.one_image(settings)
    one = {"request": ["{{metadata}}", "{{image}}"], "scores": "s"}
    assert CODEC.one_image(one)
    assert asked(FIRST, one)[1] == [{"a": [1, None]}, "iVBORw=="]


def test_metadata_that_is_not_there_is_named() -> None:
    """Bug: a missing key goes out as null, and the scorer scores something else."""
    settings = {"request": ["{{image}}", "{{metadata.label}}"], "scores": "s"}
    with pytest.raises(WireError, match=r"metadata\.label: got nothing there"):
        asked(FIRST, settings)


@pytest.mark.parametrize(
    ("scores", "errors", "reply", "answers"),
    [
        ("scores", None, {"scores": [1, 2]}, [1.0, 2.0]),
        ("[*]", None, [1, 2], [1.0, 2.0]),
        ('out[0]["my key"][*].s', None, {"out": [{"my key": [{"s": 1}, {"s": 2}]}]}, [1.0, 2.0]),
        ("r[*].s", "r[*].why", {"r": [{"s": 1}, {"why": "dark"}]}, [1.0, Rejected("dark")]),
        ("s", "e", {"s": [1, 2]}, [1.0, 2.0]),
        ("s", "e", {"s": [None, 2], "e": ["dark", None]}, [Rejected("dark"), 2.0]),
    ],
)
def test_paths_lead_to_scores_and_reasons(scores: str, errors: str | None, reply: Any, answers: list[Any]) -> None:
    """Bug: scores are read from the wrong place, or a reason is lost."""
    settings = EACH | {"scores": scores, "errors": errors}
    CODEC.check(settings)
    assert decoded(reply, 2, settings) == answers


@pytest.mark.parametrize(
    ("scores", "errors", "reply", "reason"),
    [
        ("r[*].s", None, {"r": [{"s": 1}, {}]}, r"reply.r\[1\].s: got nothing there"),
        ("r[*].s", None, {"r": [{"s": 1}, {"s": 2}, {"s": 3}]}, "scores: got 3"),
        ("r[*].s", "r[*].why", {"r": [{"s": 1}, {}]}, r"scores\[1\]: got NoneType"),
        ("r[*].s", "r[*].why", {"r": [{"s": 1}, {"s": 0, "why": "dark"}]}, "beside an error"),
        ("s", "e", {"s": [1, 2], "e": [None]}, "errors: got 1"),
        ("s", "e", {"error": "down"}, "scores: got NoneType where mapping.scores leads"),
        ("s", None, {"s": 1}, "scores: got int"),
        ("s[0]", None, {"s": {"0": [1, 2]}}, "got dict around it, expected a list"),
        ("s.t", None, {"s": [1, 2]}, "got list around it, expected an object"),
        ("s", None, {"s": ["1", 2]}, "got str, expected a number"),
        ("s", None, {"s": [math.nan, 2]}, "expected a finite number"),
    ],
)
def test_paths_that_lead_elsewhere_are_refused(scores: str, errors: str | None, reply: Any, reason: str) -> None:
    """Bug: an entry without a score is dropped and the later scores move up by one image."""
    with pytest.raises(WireError, match=reason):
        decoded(reply, 2, EACH | {"scores": scores, "errors": errors})


def nested(levels: int) -> Any:
    template: Any = "{{image}}"
    for _ in range(levels):
        template = [template]
    return template


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"scores": "s"}, "mapping.request: got nothing"),
        ({"request": "{{prompt}}", "scores": "s"}, "mapping.request: got no {{image}}"),
        ({"request": ["{{image}}", "{{imge}}"], "scores": "s"}, "mapping.request: got '{{imge}}'"),
        ({"request": {"{{image}}": 1}, "scores": "s"}, "expected placeholders in values only"),
        ({"request": ["{{prompt}}", {"$each": "{{image}}"}], "scores": "s"}, r"got \['prompt'\] outside \$each"),
        ({"request": {"$each": "{{image}}", "a": 1}, "scores": "s"}, "expected it alone"),
        ({"request": {"$each": [{"$each": "{{image}}"}]}, "scores": "s"}, "inside another"),
        ({"request": nested(33), "scores": "s"}, "more than 32 levels"),
        ({"request": nested(5000), "scores": "s"}, "mapping.request"),
        (ONE | {"scores": "s[*]"}, r"got no \$each but paths with \[\*\]"),
        *[(ONE | {"scores": path}, "mapping.scores: got .* expected a path like") for path in
          ("", ".s", "a..b", "a b", "a[-1]", "a[*][*]", "a[", 'a["', "a]", "$.s")],
    ],
)  # fmt: skip
def test_templates_and_paths_that_cannot_work_are_refused(settings: Any, reason: str) -> None:
    """Bug: a slip in a template is sent to the scorer as it stands, image after image."""
    with pytest.raises(ConfigError, match=reason):
        CODEC.check(settings)
