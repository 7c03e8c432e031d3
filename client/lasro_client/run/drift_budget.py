"""`train.drift_budget` in a run: how far the next update may take the generator, in its regulariser's own unit.

The budget is in distances between prompts, of images (`evaluation.drift`). An update knows the distance of its latents
alone, sqrt(L_reg). The ratio of the two is measured in every round, by the round's images and the update before it.
What is exported is measured and fitted once more at the end (`run.fit_to_budget`). Imports no torch.

A generator whose surrogate began from nothing is held within a trust radius too, which the gain of its rounds widens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from lasro.functional.drift_control import FIRST_RADIUS, drift_target, trust_radius
from lasro_client.run.round_estimate import LEAST_ERROR, Estimate

ROUNDS = 6
"""Newest rounds whose ratios are averaged: one has a few prompts only."""
FIRST_RATIO = 1.0
"""Until the first round of a generator that moved: latents of deviation 1 are about as far apart as two prompts'."""
LEAST_MOVED = 1e-3
"""Distance below which a ratio is rounding."""


class DriftBudget:
    """Of one run; None: nothing is held. `state()` is all that it knows besides."""

    def __init__(self, budget: float | None, from_nothing: bool = False) -> None:
        self.budget = budget
        self._first_radius = (budget or 0.0) * (FIRST_RADIUS if from_nothing else 1.0)
        self._radius = self._first_radius
        """Trust radius: the most drift for which what the rounds gained speaks."""
        self._ratios: list[float] = []
        self._reached = 0.0
        """The furthest that was allowed so far: a training that follows a pilot goes on from there."""

    def observe(self, drift: float | None, distance: float | None) -> None:
        """Take in a round: the drift of its images, and sqrt(L_reg) of the update that made its generator."""
        if drift is not None and distance is not None and min(drift, distance) > LEAST_MOVED:
            self._ratios = [*self._ratios, drift / distance][-ROUNDS:]

    def advance(self, share: float, allowed: float = 1.0) -> float | None:
        """The drift wanted of the next updates, after a share of their phase's; `allowed`: most of the budget, 0 to 1.

        It falls before `begin_again` only where the trust radius does. To be called for rounds that update the
        generator alone.
        """
        if self.budget is None:
            return None
        self._reached = max(self._reached, min(drift_target(share, self.budget), allowed * self.budget))
        return min(self._reached, self._radius)

    def trust(self, gain: Estimate, agreement: Estimate) -> None:
        """Widen or narrow the radius by the newest rounds: the gain over the base, and how often the surrogate, of an
        own sample and the base's of the same noise, ranked the better one higher."""
        if self.budget is not None:
            error, least_agreement = max(gain.sem, LEAST_ERROR), agreement.mean - agreement.sem
            self._radius = trust_radius(self._radius, gain.mean, error, self.budget, least_agreement)

    def distance(self, target: float | None) -> float | None:
        """The same as a distance of latents, sqrt(L_reg)."""
        return None if target is None else target / self._ratio

    @property
    def _ratio(self) -> float:
        logs = [math.log(ratio) for ratio in self._ratios]
        return math.exp(math.fsum(logs) / len(logs)) if logs else FIRST_RATIO

    def begin_again(self) -> None:
        """The generator is the base again, whose images and latents move alike in other proportions at first."""
        self._ratios, self._reached, self._radius = [], 0.0, self._first_radius

    def state(self) -> dict[str, Any]:
        """For JSON."""
        return {"ratios": self._ratios, "reached": self._reached, "radius": self._radius}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self._ratios, self._reached = list(state["ratios"]), state.get("reached", 0.0)
        self._radius = state.get("radius", self.budget or 0.0)  # runs of before had none


def largest(drifts: Iterable[float | None]) -> float | None:
    """Of those that were measured: a budget holds for each number of steps."""
    return max((drift for drift in drifts if drift is not None), default=None)
