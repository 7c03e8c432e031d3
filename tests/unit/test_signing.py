"""Standard Webhooks signatures against the specification's example, and against forgeries."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasro.errors import AuthError, ConfigError
from lasro.service.signing import TOLERANCE_S, Verifier, reply_id, signature, signed_headers, signing_key, verify

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEY = signing_key(SECRET)
NOW_S = 1614265330
MESSAGE_ID, BODY = "msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}'
PUBLISHED = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def now() -> float:
    return float(NOW_S)


def signed(**change: str) -> dict[str, str]:
    names = {"id": "webhook-id", "timestamp": "webhook-timestamp", "signature": "webhook-signature"}
    return signed_headers(KEY, MESSAGE_ID, BODY, now) | {names[key]: value for key, value in change.items()}


def test_the_published_example_is_reproduced() -> None:
    """Bug: our signatures satisfy nobody's library but our own."""
    assert signature(KEY, MESSAGE_ID, NOW_S, BODY) == PUBLISHED
    assert signed()["webhook-signature"] == PUBLISHED
    assert verify(KEY, signed(), BODY, now) == MESSAGE_ID


def test_one_of_several_signatures_is_enough() -> None:
    """Bug: a sender that is changing its secret is turned away."""
    several = f"v1,{base64.b64encode(bytes(32)).decode()} v1a,xyz {PUBLISHED}"
    assert verify(KEY, signed(signature=several), BODY, now) == MESSAGE_ID


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"signature": ""}, "not signed"),
        ({"id": ""}, "not signed"),
        ({"timestamp": ""}, "not signed"),
        ({"signature": PUBLISHED[3:]}, "does not fit"),
        ({"signature": "v1,"}, "does not fit"),
        ({"signature": "v1,\udcff"}, "does not fit"),
        ({"id": "msg_other"}, "does not fit"),
        ({"id": "msg.1"}, "another form"),
        ({"timestamp": str(NOW_S + 1)}, "does not fit"),
        ({"timestamp": "1614265330.0"}, "another form"),
        ({"timestamp": "-1"}, "another form"),
        ({"timestamp": "9" * 400}, "another form"),
    ],
)
def test_what_is_not_signed_as_it_should_be_is_refused(change: dict[str, str], reason: str) -> None:
    """Bug: a changed, half-signed or odd message passes, or raises something other than AuthError."""
    with pytest.raises(AuthError, match=reason):
        verify(KEY, signed(**change), BODY, now)


@given(st.binary(max_size=40), st.binary(min_size=24, max_size=64))
def test_no_other_body_and_no_other_key_fits(body: bytes, key: bytes) -> None:
    """Bug: the signature leaves a part of the message out."""
    if body != BODY:
        with pytest.raises(AuthError):
            verify(KEY, signed(), body, now)
    if key != KEY:
        with pytest.raises(AuthError):
            verify(key, signed(), BODY, now)


@pytest.mark.parametrize("late_s", [TOLERANCE_S + 1, -TOLERANCE_S - 1])
def test_an_old_or_future_message_is_refused(late_s: int) -> None:
    """Bug: what was overheard once can be sent for ever."""
    with pytest.raises(AuthError, match="check both clocks"):
        verify(KEY, signed(), BODY, lambda: NOW_S + late_s)
    assert verify(KEY, signed(), BODY, lambda: NOW_S + late_s * 0.9) == MESSAGE_ID


def test_a_message_is_let_in_once_and_forgotten_in_time() -> None:
    """Bug: a replay passes, or the ids of all messages ever stay in memory."""
    clock_s = float(NOW_S)
    verifier = Verifier(KEY, lambda: clock_s)
    for number in range(100):
        verifier.check(signed_headers(KEY, f"msg_{number}", BODY, lambda: clock_s), BODY)
    last = signed_headers(KEY, "msg_99", BODY, lambda: clock_s)
    with pytest.raises(AuthError, match="came before"):
        verifier.check(last, BODY)
    clock_s += 2 * TOLERANCE_S + 1
    with pytest.raises(AuthError, match="check both clocks"):
        verifier.check(last, BODY)
    verifier.check(signed_headers(KEY, "msg_new", BODY, lambda: clock_s), BODY)
    assert len(verifier._seen) == 1


def test_forged_messages_leave_no_trace() -> None:
    """Bug: anybody can fill the memory of ids, or use up an id before its owner does."""
    verifier = Verifier(KEY, now)
    with pytest.raises(AuthError):
        verifier.check(signed(signature="v1,forged"), BODY)
    assert verifier.check(signed(), BODY) == MESSAGE_ID


def test_a_question_is_no_answer() -> None:
    """Bug: with one key for both directions, the request sent back passes for its reply."""
    assert reply_id(MESSAGE_ID) != MESSAGE_ID
    assert verify(KEY, signed(), BODY, now) != reply_id(MESSAGE_ID)


@pytest.mark.parametrize("secret", ["plain", "whsec_", "whsec_c2hvcnQ=", "whsec_not base64!", "whsec_" + "A" * 100])
def test_unusable_secrets_are_named_but_not_repeated(secret: str) -> None:
    """Bug: a weak or mistyped secret is accepted, or ends up in the log."""
    with pytest.raises(ConfigError, match="signing secret") as caught:
        signing_key(secret)
    assert secret.removeprefix("whsec_") not in str(caught.value) or secret == "whsec_"
