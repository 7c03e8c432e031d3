"""A circuit breaker: an endpoint that keeps failing is not called for a while, then tried with a single call.

closed ── `failures` in a row ──▶ open ── after `open_s` ──▶ half-open ── the trial answers ──▶ closed
                                    ▲                            │
                                    └──────── the trial fails ───┘
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum, StrEnum

Clock = Callable[[], float]


class CircuitState(IntEnum):
    """The numbers are the values of the metric `lasro_reward_circuit_state`."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Verdict(StrEnum):
    """What a call said about the endpoint's health."""

    ANSWERED = "answered"
    FAILED = "failed"
    NOTHING = "nothing"
    """Cancelled, forbidden, or cut short by the caller's own deadline."""


class CircuitBreaker:
    """The circuit of one endpoint: it opens after `failures` failed calls in a row, for `open_s` seconds.

    `clock` returns seconds and never goes back. Calls are numbered by an epoch, which grows at each change of state, so
    that `finish` can tell a call of the present state from an older one.
    """

    def __init__(self, failures: int, open_s: float, clock: Clock = time.monotonic) -> None:
        self._limit, self._open_s, self._clock = failures, open_s, clock
        self._failed, self._last_error = 0, ""
        self._opened_at_s: float | None = None
        self._trial: int | None = None
        self._epoch = 0

    @property
    def state(self) -> CircuitState:
        if self._opened_at_s is None:
            return CircuitState.CLOSED
        return CircuitState.OPEN if self._left_s() > 0 else CircuitState.HALF_OPEN

    def _left_s(self) -> float:
        return 0.0 if self._opened_at_s is None else self._opened_at_s + self._open_s - self._clock()

    def refusal(self) -> str | None:
        """Why no call may be made now; None where one may be made."""
        if self.state is CircuitState.CLOSED:
            return None
        if self.state is CircuitState.OPEN:
            return f"circuit open after {self._failures()}; tried again in {self._left_s():.1f} s"
        if self._trial is not None:
            return f"circuit half-open after {self._failures()}; waits for its trial call"
        return None

    def _failures(self) -> str:
        last = f", the last: {self._last_error}" if self._last_error else ""
        return f"{self._failed} failures in a row{last}"

    def start(self) -> int:
        """Register the start of a call, which a probe makes even against a `refusal`; returns what `finish` takes."""
        if self.state is CircuitState.HALF_OPEN and self._trial is None:
            self._epoch += 1
            self._trial = self._epoch
        return self._epoch

    def finish(self, call: int, verdict: Verdict, error: str = "") -> None:
        """Register how a call ended, and what is to be said of the failure.

        A call that began before the circuit last changed its state is ignored: its outcome is older than the state.
        """
        if call != self._epoch:
            return
        was_trial = call == self._trial
        if was_trial:
            self._trial = None
        if verdict is Verdict.ANSWERED:
            self._epoch += self._opened_at_s is not None
            self._failed, self._opened_at_s = 0, None
        elif verdict is Verdict.FAILED:
            self._failed, self._last_error = self._failed + 1, error
            if was_trial or (self._opened_at_s is None and self._failed >= self._limit):
                self._opened_at_s = self._clock()
                self._epoch += 1
