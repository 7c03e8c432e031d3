"""What a run without a surrogate of its own does, round by round: rank, try, then train, and begin again if fooled.

    ranking    the surrogate learns from the base's samples and perturbed ones, until it ranks new groups well, or well
               enough for a try (`ranking.py`); the generator stays as it is
    pilot      the generator follows it within a part of the drift budget, until there is proof that this helps: the
               reward rises, or the surrogate ranks the generator's samples right against the base's. Without proof
               the generator begins again, while surrogate and samples stay: it ranks on, or where it ranks well
               another pilot follows, since what a generator finds that fools it no sample of the base could teach it
    training   it follows it to the end of the drift budget

A generator that is found to have been fooled in its training goes back to a pilot too. There are `train.max_restarts`
such beginnings in all. Before each the surrogate settles: it trains on all groups alike at a falling rate. A run whose
settings name a surrogate, or `warmup_rounds`, trains from then on at once.

All judgements are of independent rounds: each counts by its pairs, and the error is that between rounds. Imports no
torch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lasro.config import TrainSettings
from lasro.functional.drift_control import START_SHARE
from lasro_client.run.ranking import AGAINST_BASE, Ranking, accuracy_of, mean_accuracy
from lasro_client.run.round_estimate import Estimate, sure_errors
from lasro_client.run.round_record import Phase, RoundRecord

RANKING_SHARE, ROUNDS_AFTER_RANKING = 0.33, 120
"""Of the rounds that there may be, for ranking alone; in long runs, all but so many."""
PROOF_ROUNDS = 3
"""Fewest rounds of a proof."""
PROOF_ACCURACY = 0.6
"""Of pairs of the generator's and the base's sample of the same noise, for a proof by ranking."""
PILOT_SHARE = START_SHARE
"""Of the drift budget. A gain is known as well near the base as further out, since images are compared with the base's
of the same noise; and near it the surrogate is right first."""
LONGEST_PILOT = 12
"""Rounds without proof after which a pilot begins again."""
NEWEST_ROUNDS = 4
"""By whose gain the trust radius goes."""
FOOLED_WINDOW, FEWEST_FOOLED = 8, 4
"""Rounds by which it is judged, at most and at least."""
FOOLED = "the surrogate was fooled"
FEWEST_TRAINING_ROUNDS = 12
TRAINING_PER_ROUND, FREE_ROUNDS = 4, 4
"""Rounds of training for each before the proof but the first ones: what is hard to rank takes long to follow."""


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
    enough = settings.is_from_nothing and int(RANKING_SHARE * settings.max_rounds) > 0
    return ranking_limit(settings.max_rounds) if enough else 0


def ranking_limit(most: int) -> int:
    """Of so many rounds in all, at least 1."""
    return max(1, int(RANKING_SHARE * most), most - ROUNDS_AFTER_RANKING)


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
        self.ranking = Ranking()
        self._accuracies: list[tuple[float, float]] = []
        """Of this phase's rounds: share of the pairs of own and the base's samples that was ranked right, and how many
        these were."""
        self._gains: list[float] = []
        self._newest: list[float] = []
        """The newest gains since the generator last began, in pilot and training."""
        self._newest_accuracies: list[tuple[float, float]] = []
        """As `_accuracies`, of the newest rounds since then."""

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
            return settings.adaptation_steps, 1.0
        if self.phase == "training":
            return settings.adaptation_steps, settings.settled_rate
        return settings.ranking_steps, settings.ranking_rate if self.phase == "ranking" else 1.0

    @property
    def newest_gain(self) -> Estimate:
        """Of the newest rounds; unknown before there are enough for a proof, as two may agree by chance."""
        return Estimate.of(self._newest if len(self._newest) >= PROOF_ROUNDS else [])

    @property
    def newest_agreement(self) -> Estimate:
        """Of the newest rounds: the share of own and the base's samples that the surrogate ranked right."""
        found = self._newest_accuracies
        return mean_accuracy(found if len(found) >= PROOF_ROUNDS else [])

    @property
    def is_promising(self) -> bool:
        """Whether the gain of this phase is above nothing by more than its standard error."""
        return Estimate.of(self._gains).is_above(0, 1.0)

    def observe(self, record: RoundRecord, gain: float | None, affordable: int | None) -> Begin | End | None:
        """Take in a round, and say what changes with the next. `affordable`: rounds that fit in all, None: no limit."""
        if not self._settings.is_from_nothing:
            return None
        done, most = record.round + 1, self._settings.max_rounds
        most = most if affordable is None else min(affordable, most)
        if self.phase == "ranking":
            return self._after_ranking(record, done, most)
        found = accuracy_of(record.surrogate, AGAINST_BASE)
        self._accuracies += [] if found is None else [found]
        self._newest_accuracies = [*self._newest_accuracies, *([] if found is None else [found])][-NEWEST_ROUNDS:]
        self._gains += [] if gain is None else [gain]
        self._newest = (self._newest if gain is None else [*self._newest, gain])[-NEWEST_ROUNDS:]
        return self._after_pilot(done, most) if self.phase == "pilot" else self._after_training(done, most)

    def _after_ranking(self, record: RoundRecord, done: int, most: int) -> Begin | End | None:
        self.ranking.observe(record.surrogate)
        verdict = self.ranking.verdict(ranking_limit(most))
        if verdict is None:
            return None
        if not verdict.is_enough:
            return End(verdict.why)
        return self._begin("pilot", done, f"{verdict.why}; a pilot of the generator follows")

    def _begin(self, phase: Phase, done: int, why: str, is_restart: bool = False) -> Begin:
        self.phase, self.began = phase, done
        self._accuracies, self._gains = [], []
        if is_restart:
            self._newest, self._newest_accuracies = [], []
        return Begin(phase, is_restart, why)

    # --- pilot and training ----------------------------------------------------------------------------------

    def _after_pilot(self, done: int, most: int) -> Begin | End | None:
        gain, accuracy, count = Estimate.of(self._gains), mean_accuracy(self._accuracies), len(self._gains)
        if count < PROOF_ROUNDS:
            return None
        if gain.is_above(0, sure_errors(count)):
            return self._begin_training(done, most, f"the reward rose by {gain.mean:.3g} ± {gain.sem:.2g} in the pilot")
        is_ranked = accuracy.mean >= PROOF_ACCURACY and accuracy.is_above(0.5, sure_errors(count))
        if is_ranked and gain.is_above(0, 1.0):
            ranked = f"the surrogate ranks {accuracy.mean:.0%} of the generator's samples right against the base's"
            return self._begin_training(done, most, ranked)
        is_fooled = count >= FEWEST_FOOLED and gain.mean < -sure_errors(count) * gain.sem
        may_begin_again = self.restarts < self._settings.max_restarts and most - done >= FEWEST_TRAINING_ROUNDS
        says = f"the reward changed by {gain.mean:+.3g} ± {gain.sem:.2g} in {count} rounds of pilot"
        if is_fooled and may_begin_again and self.ranking.go_on(ranking_limit(most)):
            return self._restart("ranking", done, f"{says}: {FOOLED}")
        if count < LONGEST_PILOT:
            return None
        if may_begin_again:
            phase: Phase = "ranking" if self.ranking.go_on(ranking_limit(most)) else "pilot"
            why = FOOLED if is_fooled else "no proof that following it helps"
            return self._restart(phase, done, f"{says}: {why}")
        if gain.is_above(0, 1.0):
            return self._begin_training(done, most, f"{says}, and there is no time for another")
        return End(f"{says}, the last of {1 + self.restarts}: none raised it for sure, and the adapter changes nothing")

    def _begin_training(self, done: int, most: int, why: str) -> Begin:
        wanted = max(FEWEST_TRAINING_ROUNDS, TRAINING_PER_ROUND * (done - FREE_ROUNDS))
        self.planned = done + wanted if self._settings.rounds is None else None
        left = max(0, min(most, self.planned or most) - done)
        return self._begin("training", done, f"{why}; {left} rounds of training follow")

    def _after_training(self, done: int, most: int) -> Begin | None:
        newest = Estimate.of(self._gains[-FOOLED_WINDOW:])
        count = min(len(self._gains), FOOLED_WINDOW)
        is_fooled = count >= FEWEST_FOOLED and newest.mean < -sure_errors(count) * newest.sem
        if not is_fooled or self.restarts >= self._settings.max_restarts or most - done < FEWEST_TRAINING_ROUNDS:
            return None
        lost = f"the reward is {newest.mean:+.3g} ± {newest.sem:.2g} against the base over {count} rounds"
        return self._restart("pilot", done, f"{FOOLED}: {lost}")

    def _restart(self, phase: Phase, done: int, why: str) -> Begin:
        self.restarts, self.planned = self.restarts + 1, None
        times = f"{self.restarts} of {self._settings.max_restarts}"
        says = f"{why}. The generator begins again ({times}); the surrogate keeps what it learned"
        says += f" and ranks on, to {self.ranking.goal} rounds" if phase == "ranking" else ""
        return self._begin(phase, done, says, is_restart=True)

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
            "newest": self._newest,
            "newest_accuracies": self._newest_accuracies,
            "ranking": self.ranking.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.phase, self.restarts = state["phase"], state["restarts"]
        self.began = state["began"]
        self.planned = None if self._settings.rounds is not None else state["planned"]  # asked for since
        self._accuracies = [(accuracy, pairs) for accuracy, pairs in state["accuracies"]]
        self._gains = list(state["gains"])
        self._newest = list(state.get("newest", self._gains))[-NEWEST_ROUNDS:]
        self._newest_accuracies = [(share, pairs) for share, pairs in state.get("newest_accuracies", [])]
        self.ranking.load(state["ranking"])
