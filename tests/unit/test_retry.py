"""How the clients call a service again: pauses, limits, and what is never retried."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lasro.errors import BusyError, LasroError, NotFoundError, TimeoutExceededError, UnreachableError
from lasro_client.services import retry
from lasro_client.services.retry import FIRST_PAUSE_S, LONGEST_PAUSE_S, with_retry


class Clock:
    """In place of the module `time`: sleeping moves it, and nothing waits."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.pauses_s: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(retry, "time", clock)
    return clock


def failing(times: int, error: LasroError) -> Callable[[], str]:
    """Raises `error` so many times, then answers."""
    left = [error] * times

    def call() -> str:
        if left:
            raise left.pop()
        return "answer"

    return call


def test_pauses_double_up_to_the_longest_and_differ(clock: Clock) -> None:
    """Bug: clients that lost a service together ask it together again, or ask it a thousand times a second."""
    assert with_retry(failing(12, UnreachableError("away")), clock.now_s + 1000) == "answer"
    longest = [min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**n) for n in range(12)]
    assert all(most / 2 <= pause <= most for pause, most in zip(clock.pauses_s, longest, strict=True))
    assert len({pause / most for pause, most in zip(clock.pauses_s, longest, strict=True)}) == 12


@pytest.mark.parametrize("allowed_s", [0.0, 0.05, 3.0, 30.0])
def test_no_pause_ends_after_the_deadline(clock: Clock, allowed_s: float) -> None:
    """Bug: a caller with three seconds left waits for five."""
    deadline = clock.now_s + allowed_s
    with pytest.raises(BusyError, match="full"):
        with_retry(failing(10_000, BusyError("full")), deadline)
    assert clock.now_s <= deadline
    assert deadline - clock.now_s <= LONGEST_PAUSE_S


def test_only_what_may_pass_is_retried(clock: Clock) -> None:
    """Bug: a group that does not exist is asked for until the run's time is up, or a slow gradient is asked twice."""
    for error, kinds in (
        (NotFoundError("unknown"), {}),
        (TimeoutExceededError("slow"), {"final": (TimeoutExceededError,)}),
        (UnreachableError("away"), {"retried": (BusyError,)}),
    ):
        with pytest.raises(type(error)):
            with_retry(failing(1, error), clock.now_s + 1000, **kinds)
    assert clock.pauses_s == []
