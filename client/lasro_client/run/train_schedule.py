"""What a run without a surrogate of its own does, round by round: rank first, then train, and begin again if fooled.

    ranking    the surrogate learns from the base's samples and perturbed ones, as long as it ranks new groups better
    training   the generator follows it. Where it is found to have been fooled it goes back to where it began, while
               surrogate and samples stay, and training begins again: `train.max_restarts` times

Between the two, and before each new beginning, the surrogate settles: it trains on all groups alike at a falling rate.
A run whose settings name a surrogate, or `warmup_rounds`, trains from then on at once. Imports no torch.

All judgements are of independent rounds: each round's figure counts once, and its error is that between rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from lasro.config import TrainSettings
from lasro_client.run.round_record import Phase, RoundRecord

GOOD_ACCURACY = 0.8
"""Of new pairs ranked right: enough to follow."""
FAIR_ACCURACY = 0.65
"""Enough to follow once it rises no more; below it a surrogate is given longer, `PATIENT_ROUNDS`."""
SMALLEST_RISE = 0.02
"""Between the newest third of the rounds and the one before: less is no improvement that is worth its calls."""
HOPELESS_ACCURACY = 0.55
"""A reward of which no more than this can be ranked is noise."""
WINDOW, LONGEST_WINDOW = 3, 8
"""Rounds in a third, at least and at most."""
FEWEST_RANKING_ROUNDS = 2
PATIENT_ROUNDS, HOPELESS_ROUNDS = 12, 16
RANKING_SHARE = 0.3
"""Of the rounds that there may be, for ranking alone."""
PROOF_ERRORS = 3.0
"""Standard errors by which an accuracy is above chance, or a gain above nothing, for sure."""
FOOLED_ERRORS = 2.5
FOOLED_WINDOW = 4
TRAINING_PER_RANKING = 4
"""Rounds of training for each that the surrogate took to learn: what is hard to rank takes long to follow."""
FEWEST_TRAINING_ROUNDS = 16
PILOT_SHARE = 0.25
"""Of the drift budget, until there is proof that surrogate and reward go together."""
PILOT_ROUNDS = 12
"""Rounds of training in which there must be some proof."""


class Estimate(NamedTuple):
    """A weighted mean over rounds and its standard error; infinite for fewer than two."""

    mean: float
    sem: float

    @classmethod
    def of(cls, values: Sequence[float], weights: Sequence[float] | None = None) -> Estimate:
        """`weights`: such as the pairs of each round, of which its accuracy is a mean; absent: all alike."""
        count, weights = len(values), weights or [1.0] * len(values)
        whole = math.fsum(weights)
        if not whole:
            return cls(0.0, math.inf)
        mean = math.fsum(weight * value for weight, value in zip(weights, values, strict=True)) / whole
        if count < 2:
            return cls(mean, math.inf)
        squares = math.fsum((weight * (value - mean)) ** 2 for weight, value in zip(weights, values, strict=True))
        return cls(mean, math.sqrt(squares * count / (count - 1)) / whole)

    def is_above(self, value: float, errors: float) -> bool:
        """By that many standard errors."""
        return self.mean - value > errors * max(self.sem, 1e-12)


class Begin(NamedTuple):
    """Training begins with the next round: for the first time, or again from the start."""

    is_restart: bool
    why: str


class End(NamedTuple):
    """The run ends: there is nothing to learn."""

    why: str


class TrainSchedule:
    """The phases of a run. `state()` is all that it knows besides the settings."""

    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings
        self.phase: Phase = "ranking" if settings.is_from_nothing and self._most_ranking_rounds > 0 else "training"
        self.restarts = 0
        self.began = 0
        """The round in which this phase, or this beginning of it, began."""
        self.planned: int | None = None
        """How many rounds there shall be in all; None: as many as the settings and the budget say."""
        self._accuracies: list[tuple[float, float]] = []
        """Of new pairs ranked right, and how many pairs that were, round by round."""
        self._gains: list[float] = []
        self._is_proved = not settings.is_from_nothing

    @property
    def _most_ranking_rounds(self) -> int:
        return int(RANKING_SHARE * self._settings.max_rounds)

    def observe(self, record: RoundRecord, gain: float | None, affordable: int | None) -> Begin | End | None:
        """Take in a round, and say what changes with the next. `affordable`: rounds that fit in all, None: no limit."""
        accuracy, pairs = record.surrogate.fresh_pair_accuracy, record.surrogate.ranked_pairs
        if accuracy is not None:
            self._accuracies.append((accuracy, float(max(pairs, 1))))
        if gain is not None:
            self._gains.append(gain)
        done = record.round + 1
        most = self._settings.max_rounds if affordable is None else min(affordable, self._settings.max_rounds)
        if self.phase == "ranking":
            return self._after_ranking(done, most)
        return self._after_training(done, most)

    # --- ranking ---------------------------------------------------------------------------------------------

    def _accuracy(self, first: int = 0, last: int | None = None) -> Estimate:
        """Over these rounds."""
        chosen = self._accuracies[first:last]
        return Estimate.of([accuracy for accuracy, _ in chosen], [pairs for _, pairs in chosen])

    def _after_ranking(self, done: int, most: int) -> Begin | End | None:
        limit = max(1, int(RANKING_SHARE * most))
        if done < min(FEWEST_RANKING_ROUNDS, limit):
            return None
        third = min(LONGEST_WINDOW, max(WINDOW, len(self._accuracies) // 3))
        newest, before = self._accuracy(-third), self._accuracy(-2 * third, -third)
        says = f"ranks {newest.mean:.0%} of new pairs right"
        if newest.mean >= GOOD_ACCURACY:
            return self._begin(done, most, says)
        is_flat = len(self._accuracies) >= 2 * third and newest.mean < before.mean + SMALLEST_RISE
        is_fair = newest.mean >= FAIR_ACCURACY or (done >= PATIENT_ROUNDS and newest.is_above(0.5, PROOF_ERRORS))
        if is_flat and is_fair:
            return self._begin(done, most, f"{says} and no longer improves")
        if done >= HOPELESS_ROUNDS and newest.mean + FOOLED_ERRORS * newest.sem < HOPELESS_ACCURACY:
            return End(self._nothing_to_learn())
        if done < limit:
            return None
        if newest.is_above(0.5, 1.0) or done < 2 * WINDOW:
            return self._begin(done, most, f"{says} in the rounds there are for it")
        return End(self._nothing_to_learn())

    def _nothing_to_learn(self) -> str:
        found = self._accuracy()
        return (
            f"the surrogate ranks {found.mean:.1%} ± {found.sem:.1%} of new pairs right after {len(self._accuracies)} "
            "rounds, where chance is 50 %: the reward looks like noise, or needs more samples than it gave; see "
            "`lasro rewards audit`, or raise train.rounds"
        )

    def _begin(self, done: int, most: int, how_well: str) -> Begin:
        self.phase, self.began = "training", done
        wanted = max(FEWEST_TRAINING_ROUNDS, TRAINING_PER_RANKING * done)
        self.planned = done + wanted if self._settings.rounds is None else None
        left = min(most, self.planned or most) - done
        self._accuracies, self._gains = [], []
        return Begin(False, f"the surrogate {how_well} after {done} rounds; {left} of training follow")

    # --- training --------------------------------------------------------------------------------------------

    @property
    def pilot_share(self) -> float:
        """Of the drift budget that may be spent before there is proof."""
        return 1.0 if self._is_proved else PILOT_SHARE

    def _after_training(self, done: int, most: int) -> Begin | End | None:
        if not self._settings.is_from_nothing:
            return None
        gain, accuracy = Estimate.of(self._gains), self._accuracy()
        self._is_proved |= len(self._gains) > 2 and gain.is_above(0, PROOF_ERRORS)
        self._is_proved |= len(self._accuracies) > 3 and accuracy.is_above(0.5, PROOF_ERRORS)
        if not self._is_proved and done - self.began >= PILOT_ROUNDS and not accuracy.is_above(0.5, 1.0):
            return End(self._nothing_to_learn())
        newest = Estimate.of(self._gains[-FOOLED_WINDOW:])
        is_fooled = len(self._gains) >= FOOLED_WINDOW and newest.mean < -FOOLED_ERRORS * newest.sem
        if not is_fooled or self.restarts >= self._settings.max_restarts or most - done < FEWEST_TRAINING_ROUNDS // 2:
            return None
        self.restarts += 1
        trained = done - self.began
        self.began, self._gains, self._accuracies, self._is_proved = done, [], [], False
        if self.planned is not None:
            self.planned += trained  # what was thrown away is done again
        return Begin(
            True,
            f"the surrogate was fooled: the reward is {newest.mean:+.3g} ± {newest.sem:.2g} against the base over "
            f"{FOOLED_WINDOW} rounds. The generator begins again, {self.restarts} of {self._settings.max_restarts} "
            "times; the surrogate keeps what it learned",
        )

    # --- state -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "phase": self.phase,
            "restarts": self.restarts,
            "began": self.began,
            "planned": self.planned,
            "accuracies": self._accuracies,
            "gains": self._gains,
            "is_proved": self._is_proved,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.phase, self.restarts, self.began = state["phase"], state["restarts"], state["began"]
        self.planned, self._is_proved = state["planned"], state["is_proved"]
        self._accuracies = [(accuracy, pairs) for accuracy, pairs in state["accuracies"]]
        self._gains = list(state["gains"])
