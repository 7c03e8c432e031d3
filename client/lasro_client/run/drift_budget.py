"""`train.drift_budget` in a run: how far the next update may take the generator, in its regulariser's own unit.

The budget is in distances between prompts, of images (`evaluation.drift`). An update knows the distance of its latents
alone, sqrt(L_reg). The ratio of the two is measured in every round, by the round's images and the update before it.
What is exported is measured and fitted once more at the end (`run.fit_to_budget`). Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from lasro.functional.drift_control import drift_target

ROUNDS = 6
"""Newest rounds whose ratios are averaged: one has a few prompts only."""
FIRST_RATIO = 1.0
"""Until the first round of a generator that moved: latents of deviation 1 are about as far apart as two prompts'."""
LEAST_MOVED = 1e-3
"""Distance below which a ratio is rounding."""


class DriftBudget:
    """Of one run; None: nothing is held. `state()` is all that it knows besides."""

    def __init__(self, budget: float | None) -> None:
        self.budget = budget
        self._ratios: list[float] = []
        self._reached = 0.0
        """The furthest target so far: a training that follows a pilot goes on from there."""

    def observe(self, drift: float | None, distance: float | None) -> None:
        """Take in a round: the drift of its images, and sqrt(L_reg) of the update that made its generator."""
        if drift is not None and distance is not None and min(drift, distance) > LEAST_MOVED:
            self._ratios = [*self._ratios, drift / distance][-ROUNDS:]

    def advance(self, share: float, allowed: float = 1.0) -> float | None:
        """The drift wanted of the next updates, after a share of their phase's; `allowed`: most of the budget, 0 to 1.

        It never falls before `begin_again`. To be called for rounds that update the generator alone.
        """
        if self.budget is None:
            return None
        self._reached = max(self._reached, min(drift_target(share, self.budget), allowed * self.budget))
        return self._reached

    def distance(self, target: float | None) -> float | None:
        """The same as a distance of latents, sqrt(L_reg)."""
        return None if target is None else target / self._ratio

    @property
    def _ratio(self) -> float:
        logs = [math.log(ratio) for ratio in self._ratios]
        return math.exp(math.fsum(logs) / len(logs)) if logs else FIRST_RATIO

    def begin_again(self) -> None:
        """The generator is the base again, whose images and latents move alike in other proportions at first."""
        self._ratios, self._reached = [], 0.0

    def state(self) -> dict[str, Any]:
        """For JSON."""
        return {"ratios": self._ratios, "reached": self._reached}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self._ratios, self._reached = list(state["ratios"]), state.get("reached", 0.0)


def largest(drifts: Iterable[float | None]) -> float | None:
    """Of those that were measured: a budget holds for each number of steps."""
    return max((drift for drift in drifts if drift is not None), default=None)
