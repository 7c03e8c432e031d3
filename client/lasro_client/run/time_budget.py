"""`budget.max_minutes`: when a run has to end, and how many rounds fit into its minutes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from lasro.errors import BudgetError
from lasro.training.distributed import DistributedContext

PACE_ROUNDS = 5
"""Rounds after the first one that tell the pace. The first one also samples what later ones sample ahead."""


class TimeBudget:
    """The clock of a run. `elapsed_s`: what earlier lives of the run took; `max_minutes`: None for no limit."""

    def __init__(self, max_minutes: float | None, elapsed_s: float, peers: DistributedContext) -> None:
        self._max_minutes, self._peers = max_minutes, peers
        self._started = time.monotonic() - elapsed_s
        self.paused_s = 0.0
        """Of this life of the run, in pauses; not in `elapsed_s`."""
        self._round_ends_s: list[float] = []
        self._pace_rounds = PACE_ROUNDS

    @property
    def elapsed_s(self) -> float:
        """Since the start of the run, interruptions and pauses left out."""
        return time.monotonic() - self._started

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Time that passes inside does not count."""
        began = time.monotonic()
        try:
            yield
        finally:
            pause_s = time.monotonic() - began
            self._started += pause_s
            self.paused_s += pause_s

    def check(self) -> None:
        """Raises BudgetError in all processes once the minutes are over by the main process's clock."""
        limit = self._max_minutes
        if limit is None:
            return

        def check_here() -> None:
            if self.elapsed_s >= 60 * limit:
                raise BudgetError(f"budget.max_minutes: the {limit:g} minutes are over")

        self._peers.on_main_and_broadcast(check_here, None)

    def fitting_rounds(self, done: int, elapsed_s: float) -> int | None:
        """How many rounds fit in all, after `done` of them at `elapsed_s`; None where there is no new estimate.

        Called after every round. The first estimate comes after PACE_ROUNDS + 1 rounds, the next after twice as many
        more, and so on: other work on the machine may have slowed the first ones.
        """
        if self._max_minutes is None:
            return None
        self._round_ends_s.append(elapsed_s)
        seen = len(self._round_ends_s) - 1
        if seen < self._pace_rounds:
            return None
        pace_s = (self._round_ends_s[-1] - self._round_ends_s[0]) / seen
        self._round_ends_s, self._pace_rounds = self._round_ends_s[-1:], 2 * seen
        left_s = max(0.0, 60 * self._max_minutes - elapsed_s)
        return self._peers.on_main_and_broadcast(lambda: done + int(left_s / pace_s), int)
