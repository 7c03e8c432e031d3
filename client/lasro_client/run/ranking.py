"""How well the surrogate of a run from nothing ranks new groups, and whether that is enough to follow it.

It is tried early, and after each try that did not help it ranks three times as long as before: rewards differ by a
hundred times in what they take, and only a generator that follows shows whether it was enough. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lasro.wire import REFERENCE_KINDS, KindAccuracy
from lasro_client.run.round_estimate import Estimate, sure_errors
from lasro_client.run.round_record import SurrogateRecord

GOOD_ACCURACY = 0.85
"""Of new pairs ranked right, by a standard error and more: enough to follow at once, and for good."""
FAIR_ACCURACY = 0.6
"""Enough for a try."""
HOPELESS_ACCURACY = 0.55
"""A reward of which no more than this can be ranked is noise."""
WINDOW, LONGEST_WINDOW = 3, 24
"""Newest rounds that are judged by: a third of them, at least and at most so many."""
FIRST_GOAL, HOPELESS_ROUNDS = 12, 16
"""Rounds before the first try, and before it may be given up."""
NEXT_GOAL = 3
"""Times the rounds so far, before the next try: each costs about as many calls as a dozen rounds."""
ACROSS_SEEDS = ("across_seeds",)
AGAINST_BASE = tuple(REFERENCE_KINDS.values())
"""Kinds of pairs. The latter are of the generator's and the base's sample of the same noise, in pilot and training."""


class Verdict(NamedTuple):
    """Ranking is over: there is something to follow, or nothing to learn."""

    is_enough: bool
    why: str


class Ranking:
    """Over all rounds of ranking of a run. `state()` is all that it knows."""

    def __init__(self) -> None:
        self.rounds = 0
        self.goal = FIRST_GOAL
        """Rounds after which it is tried."""
        self._accuracies: list[tuple[float, float]] = []
        """Of each round: share of the new pairs that was ranked right, and how many these were."""

    def observe(self, surrogate: SurrogateRecord) -> None:
        """Take in a round. It is judged by pairs of seeds: perturbed samples are easy to tell from their originals."""
        self.rounds += 1
        found = accuracy_of(surrogate, ACROSS_SEEDS)
        if found is None and surrogate.fresh_pair_accuracy is not None:  # of a trainer that knows no kinds
            found = surrogate.fresh_pair_accuracy, float(max(surrogate.ranked_pairs, 1))
        if found is not None:
            self._accuracies.append(found)

    def verdict(self, limit: int) -> Verdict | None:
        """None: it goes on. `limit`: most rounds that it may take."""
        newest, count = self._newest, len(self._accuracies)
        says = f"the surrogate ranks {newest.mean:.0%} of new pairs right after {self.rounds} rounds"
        if count >= min(WINDOW, limit) and self.is_good:
            return Verdict(True, says)
        if self.rounds >= HOPELESS_ROUNDS and newest.mean + 2 * newest.sem < HOPELESS_ACCURACY:
            return Verdict(False, self._nothing_to_learn())
        if self.rounds >= limit:
            is_above_chance = newest.is_above(0.5, 1.0) or count < 2 * WINDOW
            return Verdict(True, f"{says}, all for it") if is_above_chance else Verdict(False, self._nothing_to_learn())
        is_fair = newest.mean >= FAIR_ACCURACY or newest.is_above(0.5, sure_errors(self._window))
        return Verdict(True, f"{says}, which is worth a try") if is_fair and self.rounds >= self.goal else None

    def go_on(self, limit: int) -> bool:
        """After a try that did not help: whether to rank on, to a further goal."""
        if self.is_good or self.rounds >= limit:
            return False
        self.goal = min(limit, NEXT_GOAL * self.rounds)
        return True

    @property
    def is_young(self) -> bool:
        """In its first rounds perturbed samples help a surrogate that has seen next to nothing; later calls are better
        spent on the base's own."""
        return self.rounds < FIRST_GOAL

    @property
    def is_good(self) -> bool:
        """Whether more of it would teach little."""
        return self._newest.is_above(GOOD_ACCURACY, 1.0)

    @property
    def _window(self) -> int:
        return min(LONGEST_WINDOW, max(WINDOW, len(self._accuracies) // 3))

    @property
    def _newest(self) -> Estimate:
        return mean_accuracy(self._accuracies[-self._window :])

    def _nothing_to_learn(self) -> str:
        found = mean_accuracy(self._accuracies)
        return (
            f"the surrogate ranks {found.mean:.1%} ± {found.sem:.1%} of new pairs right after {self.rounds} "
            "rounds, where chance is 50 %: the reward looks like noise, or needs more samples than it gave; see "
            "`lasro rewards audit`, or raise train.prompts_per_round"
        )

    def state(self) -> dict[str, Any]:
        """For JSON."""
        return {"rounds": self.rounds, "goal": self.goal, "accuracies": self._accuracies}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.rounds, self.goal = state["rounds"], state["goal"]
        self._accuracies = [(accuracy, pairs) for accuracy, pairs in state["accuracies"]]


def accuracy_of(surrogate: SurrogateRecord, kinds: Sequence[str]) -> tuple[float, float] | None:
    """Of a round's new pairs of these kinds: the share that was ranked right, and how many. None for none."""
    found = [surrogate.accuracy_by_kind[name] for name in kinds if name in surrogate.accuracy_by_kind]
    if not found:
        return None
    pooled = KindAccuracy.pooled(found)
    return pooled.accuracy, float(pooled.pairs)


def mean_accuracy(accuracies: Sequence[tuple[float, float]]) -> Estimate:
    """Of rounds, each of which counts by its pairs."""
    return Estimate.of([accuracy for accuracy, _ in accuracies], [pairs for _, pairs in accuracies])
