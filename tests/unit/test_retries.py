"""When a failed call is made again: pauses, Retry-After in both forms, deadlines."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasro_reward_api.endpoints.retries import LONGEST_BACKOFF_S, is_retried, pause_s, retry_after_s

NOW = datetime(2015, 10, 21, 7, 27, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 30.0),
        ("Wed, 21 Oct 2015 07:20:00 GMT", 0.0),
        ("Wed, 21 Oct 2015 08:28:00 +0100", 30.0),
        ("0.5", 0.5),
        ("1.", 1.0),
        (".25", 0.25),
        ("", None),
        ("-5", None),
        ("1.5.2", None),
        (".", None),
        ("inf", None),
        ("1e3", None),
        ("soon", None),
        ("Wed, 99 Oct 2015 07:28:00 GMT", None),
        ("١٢", None),
        ("Wed, 21 Oct 2015 07:28:00 -0000", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    """Bug: the date form or half a second is ignored, a past date waits a negative time, or nonsense raises."""
    assert retry_after_s(value, NOW) == seconds


@given(st.text())
def test_no_retry_after_raises(value: str) -> None:
    """Bug: an endpoint's header breaks the request that it answers."""
    seconds = retry_after_s(value)
    assert seconds is None or seconds >= 0


@given(st.integers(1, 60), st.floats(0, 1e6))
def test_pauses_are_bounded_and_leave_time_for_the_call(attempt: int, left_s: float) -> None:
    """Bug: back-off outlasts the caller, or grows without bound."""
    wait_s = pause_s(attempt, None, left_s)
    assert wait_s is None or 0 <= wait_s <= min(LONGEST_BACKOFF_S, left_s)


def test_what_the_endpoint_asks_for_is_waited_for_or_given_up() -> None:
    """Bug: a retry comes before the time that Retry-After names, or after the caller has left."""
    assert pause_s(1, 5.0, 20.0) == 5.0
    assert pause_s(1, 5.0, 4.0) is None
    assert pause_s(1, 86_400.0, float("inf")) is None


def test_pauses_are_jittered() -> None:
    """Bug: all callers of a scorer that failed come back in the same moment."""
    assert len({pause_s(3, None, 100.0) for _ in range(20)}) > 10


def test_only_what_may_pass_is_retried() -> None:
    """Bug: a refusal is sent again and again, or a gateway's 5xx or a busy cog's 409 is not."""
    assert [status for status in range(400, 600) if is_retried(status)] == [
        408, 409, 425, 429, *range(500, 600)
    ]  # fmt: skip
