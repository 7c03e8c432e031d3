"""What an endpoint says of its own failure: found in the bodies that servers send, and shown without secrets."""

from __future__ import annotations

import base64
import json
import pickle
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasro.service.error_text import LONGEST_TEXT, error_of_body
from lasro.wire import Protocol, RewardSpec
from lasro_reward_api.endpoints.redaction import LONGEST_ERROR, Redactor

MISSING = {"type": "missing", "loc": ["body", "images"], "msg": "Field required", "input": {"prompts": ["p"]}}
TRACEBACK = 'Traceback (most recent call last):\n  File "app.py", line 3\nRuntimeError: CUDA out of memory'


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"detail": "model 'x' is not loaded"}, "model 'x' is not loaded"),
        ({"error": "no GPU"}, "no GPU"),
        ({"message": "no GPU", "object": "error", "code": 400}, "no GPU"),
        ({"error": {"message": "no GPU", "code": 400, "param": None}}, "no GPU"),
        ({"error": True, "message": "no GPU"}, "no GPU"),
        ({"detail": {"error": {"message": "no GPU"}}}, "no GPU"),
        ({"detail": [MISSING, MISSING | {"loc": ["body", 0]}]}, "body.images: Field required; body.0: Field req"),
        ({"errors": ["one", "two"]}, "one; two"),
        ({"Message": "no GPU"}, "no GPU"),
        ({"status": 404, "error": "Not Found", "message": "no such model", "path": "/"}, "no such model"),
        ({"type": "about:blank", "title": "busy", "detail": "16 calls in flight"}, "16 calls in flight"),
        ({"status": "failed", "hint": 3}, '{"status": "failed", "hint": 3}'),
        ('"no GPU"', "no GPU"),
        ({}, ""),
        (None, ""),
        ("\n no GPU \nsecond line", "no GPU"),
        (TRACEBACK, "RuntimeError: CUDA out of memory"),
        ("two\twords\x1b[31m red", "two words [31m red"),
        ("no GPU", "no GPU"),
        ("<html><head><title>502 Bad\nGateway</title><body>nginx", "502 Bad Gateway"),
        ("<html>Login</html>", ""),
        ("<Error><Code>1</Code><Message>no &lt;GPU&gt;</Message></Error>", "no <GPU>"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", ""),
        (pickle.dumps({"error": "x"}), ""),
        (b"", ""),
        (b"[" * 100_000, "[" * LONGEST_TEXT),
    ],
)
def test_the_message_of_an_error_is_found(body: object, message: str) -> None:
    """Bug: of `HTTP 404` one learned the number only, and looked for the model's name in another machine's log."""
    if not isinstance(body, bytes):
        body = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    found = error_of_body(body)
    assert found.startswith(message)
    assert bool(found) == bool(message)


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_no_body_of_an_error_raises_or_breaks_the_line(body: bytes) -> None:
    """Bug: what an endpoint answers besides its status ends the request, or writes lines of its own into the log."""
    message = error_of_body(body)
    assert len(message.splitlines()) <= 1
    assert message.isprintable() or not message


BASIC = base64.b64encode(b"user:hunter2x").decode()
SPEC = RewardSpec(
    name="r",
    url="https://scorer.example/?api_key=query-key&model=clip-large",
    protocol=Protocol.NATIVE,
    secret="whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQ=",
    headers={"X-Key": "header  key", "Authorization": f"Basic {BASIC}", "X-Token": "Bearer own-token", "X-V": "2"},
)


@pytest.mark.parametrize(
    "secret",
    [
        "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQ=", "c2VjcmV0LXNlY3JldC1zZWNyZXQ=", "header  key", BASIC, "hunter2x",
        "own-token", "query-key", "https://me:pass@inner/", "redis://:pass@inner/", "Bearer eyJhbGciOiJIUzI1NiJ9.e30.x",
        "sk-proj-abcdef012345", "hf_abcdefghijkl", "?api_key=somebody-elses", '{"password": "correct-horse"}',
    ],
)  # fmt: skip
def test_secrets_are_not_repeated(secret: str) -> None:
    """Bug: an endpoint that quotes the headers it was sent puts the key into everybody's log and report."""
    shown = Redactor(SPEC)(f"wrong: {secret}, at clip-large v2")
    assert "[redacted]" in shown
    for word in (
        "pass@",
        "eyJ",
        "abcdef",
        "somebody",
        "correct-horse",
        "hunter",
        "own-t",
        "query-k",
        "c2Vj",
        BASIC,
        "r  k",
    ):
        assert word not in shown
    assert "clip-large v2" in shown


def test_an_error_is_one_short_line_and_no_part_of_a_secret() -> None:
    """Bug: a text was cut in the middle of a secret, of which the first half was shown; or reading it took minutes."""
    shown = Redactor(SPEC)("x" * (LONGEST_ERROR - 4) + "own-token" + "\u202e\n" + "Bearer :// " * 20_000)
    assert len(shown) == LONGEST_ERROR
    assert shown.endswith("x[red")
    started_s = time.thread_time()
    Redactor(SPEC)("Bearer ://a=" * 100_000)
    assert error_of_body(b"<title " * 150_000) == ""
    assert time.thread_time() - started_s < 1


@pytest.mark.parametrize(
    "text", ["expected a bearer token", "Basic authentication required", "token: expected 77 tokens", "v2 of 2"]
)
def test_plain_words_stay(text: str) -> None:
    """Bug: a short header's value or a word like `token` blots out what the endpoint says."""
    assert Redactor(SPEC)(text) == text
