"""What a run without a surrogate of its own does, round by round: rank, try, then train, and begin again if fooled.

    ranking    the surrogate learns from the base's samples and perturbed ones, until it ranks new groups well or no
               longer improves; the generator stays as it is
    pilot      the generator follows it within a part of the drift budget, until there is proof that this helps: the
               reward rises, or the surrogate ranks the generator's samples right against the base's. Without proof
               after some rounds the generator begins again, while surrogate and samples stay: what a generator finds
               that fools the surrogate no sample of the base could have taught it
    training   it follows it to the end of the drift budget

A generator that is found to have been fooled in its training goes back to a pilot too. There are `train.max_restarts`
such beginnings in all. Before each the surrogate settles: it trains on all groups alike at a falling rate. A run whose
settings name a surrogate, or `warmup_rounds`, trains from then on at once.

All judgements are of independent rounds: each counts by its pairs, and the error is that between rounds. Imports no
torch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lasro.config import TrainSettings
from lasro.wire import KindAccuracy
from lasro_client.run.round_estimate import Estimate, sure_errors
from lasro_client.run.round_record import Phase, RoundRecord

GOOD_ACCURACY = 0.85
"""Of new pairs ranked right, by a standard error and more: enough to follow."""
FAIR_ACCURACY = 0.6
"""Enough to try once it rises no more."""
SMALLEST_RISE = 0.02
"""Between the newest third of the rounds and the one before: what is surely less is not worth its calls."""
FLAT_ERRORS = 1.5
"""Standard errors for that: each round is another chance to take a rise for none."""
HOPELESS_ACCURACY = 0.55
"""A reward of which no more than this can be ranked is noise."""
WINDOW, LONGEST_WINDOW = 3, 24
"""Rounds in a third, at least and at most."""
PATIENT_ROUNDS, HOPELESS_ROUNDS = 24, 16
"""Of ranking: before it may end without a good accuracy, and before it may be given up."""
RANKING_SHARE = 0.3
"""Of the rounds that there may be, for ranking alone."""
PROOF_ROUNDS = 3
"""Fewest rounds of a proof."""
PROOF_ACCURACY = 0.6
"""Of pairs of the generator's and the base's sample of the same noise, for a proof by ranking."""
PILOT_SHARE = 0.75
"""Of the drift budget, reached in its last rounds: nearer to the base a gain is lost in the noise of a few images."""
LONGEST_PILOT = 12
"""Rounds without proof after which a pilot begins again."""
FOOLED_WINDOW = 8
FOOLED = "the surrogate was fooled"
FEWEST_TRAINING_ROUNDS = 12
TRAINING_PER_ROUND, FREE_ROUNDS = 4, 4
"""Rounds of training for each before the proof but the first ones: what is hard to rank takes long to follow."""
OF_THE_SAME_NOISE = ("reference_one_step", "reference_two_step")
"""Kinds of pairs: own against perturbed samples in the ranking, against the base's in pilot and training."""
ACROSS_SEEDS = ("across_seeds",)


class Begin(NamedTuple):
    """A phase begins with the next round."""

    phase: Phase
    is_restart: bool
    """Whether the generator goes back to where it began."""
    why: str


class End(NamedTuple):
    """The run ends: there is nothing to learn, or nothing that helps."""

    why: str


def most_ranking_rounds(settings: TrainSettings) -> int:
    """Rounds that such a run may spend on ranking alone; 0 where it trains from the first one on."""
    return int(RANKING_SHARE * settings.max_rounds) if settings.is_from_nothing else 0


class TrainSchedule:
    """The phases of a run. `state()` is all that it knows besides the settings."""

    def __init__(self, settings: TrainSettings) -> None:
        self._settings = settings
        self.phase: Phase = "ranking" if most_ranking_rounds(settings) > 0 else "training"
        self.restarts = 0
        self.began = 0
        """The round in which this phase began."""
        self.planned: int | None = None
        """How many rounds there shall be in all; None: as many as the settings and the budget say."""
        self._accuracies: list[tuple[float, float]] = []
        """Of this phase's rounds: share of the new pairs that count that was ranked right, and how many these were."""
        self._gains: list[float] = []
        self.ranked = 0
        """Rounds of ranking so far."""

    @property
    def pilot_share(self) -> float:
        """Of the drift budget that may be spent in this phase."""
        return PILOT_SHARE if self.phase == "pilot" else 1.0

    @property
    def adaptation(self) -> tuple[int, float]:
        """Of this phase's rounds: surrogate steps, and how many times its learning rate they are taken at.

        Samples that fool a surrogate in a pilot are few and new: it learns from them as thoroughly as in the ranking.
        """
        settings = self._settings
        if not settings.is_from_nothing:
            return settings.surrogate_steps, 1.0
        if self.phase == "training":
            return settings.surrogate_steps, settings.settled_rate
        return settings.ranking_steps, settings.ranking_rate if self.phase == "ranking" else 1.0

    @property
    def is_promising(self) -> bool:
        """Whether the gain of this phase is above nothing by more than its standard error."""
        return Estimate.of(self._gains).is_above(0, 1.0)

    def observe(self, record: RoundRecord, gain: float | None, affordable: int | None) -> Begin | End | None:
        """Take in a round, and say what changes with the next. `affordable`: rounds that fit in all, None: no limit."""
        if not self._settings.is_from_nothing:
            return None
        self._note(record, gain)
        done, most = record.round + 1, self._settings.max_rounds
        most = most if affordable is None else min(affordable, most)
        if self.phase == "ranking":
            self.ranked = done
            return self._after_ranking(done, most)
        return self._after_pilot(done, most) if self.phase == "pilot" else self._after_harm(done, most)

    def _note(self, record: RoundRecord, gain: float | None) -> None:
        surrogate, by_kind = record.surrogate, record.surrogate.accuracy_by_kind
        # Perturbed samples are easy to tell from their originals, so in the ranking they are half of it and no more.
        wanted = (OF_THE_SAME_NOISE, ACROSS_SEEDS) if self.phase == "ranking" else (OF_THE_SAME_NOISE,)
        kinds = [[by_kind[name] for name in names if name in by_kind] for names in wanted]
        parts = [KindAccuracy.pooled(found) for found in kinds if found]
        if parts:
            accuracy = sum(part.accuracy for part in parts) / len(parts)
            self._accuracies.append((accuracy, float(sum(part.pairs for part in parts))))
        elif self.phase == "ranking" and surrogate.fresh_pair_accuracy is not None:  # of a trainer that knows no kinds
            self._accuracies.append((surrogate.fresh_pair_accuracy, float(max(surrogate.ranked_pairs, 1))))
        if gain is not None:
            self._gains.append(gain)

    def _accuracy(self, first: int = 0, last: int | None = None) -> Estimate:
        """Over these rounds of the phase."""
        chosen = self._accuracies[first:last]
        return Estimate.of([accuracy for accuracy, _ in chosen], [pairs for _, pairs in chosen])

    # --- ranking ---------------------------------------------------------------------------------------------

    def _after_ranking(self, done: int, most: int) -> Begin | End | None:
        limit, count = max(1, int(RANKING_SHARE * most)), len(self._accuracies)
        third = min(LONGEST_WINDOW, max(WINDOW, count // 3))
        newest, before = self._accuracy(-third), self._accuracy(-2 * third, -third)
        says = f"the surrogate ranks {newest.mean:.0%} of new pairs right after {done} rounds"
        if count >= min(WINDOW, limit) and newest.is_above(GOOD_ACCURACY, 1.0):
            return self._begin_pilot(done, f"{says}; a pilot of the generator follows")
        rise, error = newest.mean - before.mean, math.hypot(newest.sem, before.sem)
        is_flat = count >= 2 * third and rise + FLAT_ERRORS * error < SMALLEST_RISE
        is_fair = newest.mean >= FAIR_ACCURACY or newest.is_above(0.5, sure_errors(third))
        if is_flat and is_fair and done >= PATIENT_ROUNDS:
            return self._begin_pilot(done, f"{says} and no longer improves; a pilot of the generator follows")
        if done >= HOPELESS_ROUNDS and newest.mean + 2 * newest.sem < HOPELESS_ACCURACY:
            return End(self._nothing_to_learn())
        if done < limit:
            return None
        if newest.is_above(0.5, 1.0) or count < 2 * WINDOW:
            return self._begin_pilot(done, f"{says}, all that there are for it; a pilot of the generator follows")
        return End(self._nothing_to_learn())

    def _nothing_to_learn(self) -> str:
        found = self._accuracy()
        return (
            f"the surrogate ranks {found.mean:.1%} ± {found.sem:.1%} of new pairs right after {len(self._accuracies)} "
            "rounds, where chance is 50 %: the reward looks like noise, or needs more samples than it gave; see "
            "`lasro rewards audit`, or raise train.prompts_per_round"
        )

    def _begin_pilot(self, done: int, why: str, is_restart: bool = False) -> Begin:
        self.phase, self.began = "pilot", done
        self._accuracies, self._gains = [], []
        return Begin("pilot", is_restart, why)

    # --- pilot and training ----------------------------------------------------------------------------------

    def _after_pilot(self, done: int, most: int) -> Begin | End | None:
        gain, accuracy, count = Estimate.of(self._gains), self._accuracy(), len(self._gains)
        if count < PROOF_ROUNDS:
            return None
        if gain.is_above(0, sure_errors(count)):
            return self._begin_training(done, most, f"the reward rose by {gain.mean:.3g} ± {gain.sem:.2g} in the pilot")
        is_ranked = accuracy.mean >= PROOF_ACCURACY and accuracy.is_above(0.5, sure_errors(count))
        if is_ranked and gain.is_above(0, 1.0):
            ranked = f"the surrogate ranks {accuracy.mean:.0%} of the generator's samples right against the base's"
            return self._begin_training(done, most, ranked)
        if count < LONGEST_PILOT:
            return None
        says = f"the reward changed by {gain.mean:+.3g} ± {gain.sem:.2g} in {count} rounds of pilot"
        if self.restarts < self._settings.max_restarts and most - done >= FEWEST_TRAINING_ROUNDS:
            is_fooled = gain.mean < -sure_errors(count) * gain.sem
            return self._restart(done, f"{says}: {FOOLED if is_fooled else 'no proof that following it helps'}")
        if gain.is_above(0, 1.0):
            return self._begin_training(done, most, f"{says}, and there is no time for another")
        return End(f"{says}, the last of {1 + self.restarts}: none raised it for sure, and the adapter changes nothing")

    def _begin_training(self, done: int, most: int, why: str) -> Begin:
        self.phase, self.began = "training", done
        wanted = max(FEWEST_TRAINING_ROUNDS, TRAINING_PER_ROUND * (done - FREE_ROUNDS))
        self.planned = done + wanted if self._settings.rounds is None else None
        self._accuracies, self._gains = [], []
        left = max(0, min(most, self.planned or most) - done)
        return Begin("training", False, f"{why}; {left} rounds of training follow")

    def _after_harm(self, done: int, most: int) -> Begin | None:
        newest = Estimate.of(self._gains[-FOOLED_WINDOW:])
        count = min(len(self._gains), FOOLED_WINDOW)
        is_fooled = count >= FOOLED_WINDOW // 2 and newest.mean < -sure_errors(count) * newest.sem
        if not is_fooled or self.restarts >= self._settings.max_restarts or most - done < FEWEST_TRAINING_ROUNDS:
            return None
        lost = f"the reward is {newest.mean:+.3g} ± {newest.sem:.2g} against the base over {count} rounds"
        return self._restart(done, f"{FOOLED}: {lost}")

    def _restart(self, done: int, why: str) -> Begin:
        self.restarts, self.planned = self.restarts + 1, None
        times = f"{self.restarts} of {self._settings.max_restarts}"
        says = f"{why}. The generator begins again ({times}); the surrogate keeps what it learned"
        return self._begin_pilot(done, says, is_restart=True)

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
            "ranked": self.ranked,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.phase, self.restarts = state["phase"], state["restarts"]
        self.began = state["began"]
        self.planned = None if self._settings.rounds is not None else state["planned"]  # asked for since
        self._accuracies = [(accuracy, pairs) for accuracy, pairs in state["accuracies"]]
        self._gains = list(state["gains"])
        self.ranked = state.get("ranked", 0)  # a state of release 0.3 in the making has none
