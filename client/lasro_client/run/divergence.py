"""Detects a run that diverges: by the reward compared with the base's, the surrogate's ranking, and the drift.

All checks use means over a window of rounds, since the gain of a single round is mostly noise. The gain is that of the
current weights. Their moving average is often better, and a run that has not gained yet may recover, so a low gain
alone undoes nothing unless an earlier window was clearly better.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from lasro.config import HealthSettings
from lasro_client.run.round_record import Action, HealthRecord

MAX_DRIFT = 0.65
"""Where there is no budget: 0.71 is one picture for any noise."""
PROOF_ERRORS = 3.0
"""The best gain counts as proved when it is this many standard errors above the base."""
KEPT_SHARE = 0.5
"""A decline that leaves more than this share of the best gain is no trouble, however significant it is."""

GENTLER = "raise method.regulariser_weight or lower train.learning_rate to go on for longer"
CLOSER = "raise train.surrogate_steps or lower train.learning_rate, so that the surrogate keeps up"
CONSEQUENCES: dict[Action | None, str] = {
    None: "The run went on.",
    "stop": "The run was ended there; the adapter is that of its best rounds.",
    "roll_back": "The run went on from its best rounds.",
}


def describe_trouble(health: HealthRecord) -> str:
    """The trouble of a round, and what was done about it."""
    return f"{health.trouble}. {CONSEQUENCES[health.action]}"


class Figures(NamedTuple):
    """One round: reward minus the base's of the same noise, reward gap and drift as in the log; None: not measured."""

    gain: float | None
    gap: float | None
    drift: float | None


class Trouble(NamedTuple):
    """What is wrong, and whether the run had better return to its best weights."""

    reason: str
    go_back: bool


class Best(NamedTuple):
    """The best window so far: its mean gain and its last round. Before any round this is the base."""

    gain: float = 0.0
    round: int = -1
    proved: bool = False
    """Whether it was significantly above the base, by the noise that was known then."""


class DivergenceMonitor:
    """Takes in each round in order. `state()` is all that it knows."""

    def __init__(self, settings: HealthSettings, drift_budget: float | None = None) -> None:
        self._settings = settings
        self._max_drift = settings.max_drift or (MAX_DRIFT if drift_budget is None else math.inf)
        self.best = Best()
        self.roll_backs = 0
        self._window: list[Figures] = []
        self._last_gain: float | None = None
        self._squares, self._differences = 0.0, 0
        self._gap_was_low = False

    def observe(self, round: int, figures: Figures) -> bool:
        """Take in a round; returns whether the window that ends with it is the best so far."""
        self._window = [*self._window, figures][-self._settings.window_rounds :]
        if figures.gain is not None:
            if self._last_gain is not None:
                self._squares += (figures.gain - self._last_gain) ** 2 / 2
                self._differences += 1
            self._last_gain = figures.gain
        gain, gap = self._mean("gain"), self._mean("gap")
        self._gap_was_low |= gap is not None and gap <= self._settings.max_reward_gap
        if gain is None or gain <= self.best.gain:
            return False
        self.best = Best(gain, round, gain > PROOF_ERRORS * self._error())
        return True

    def _mean(self, name: str) -> float | None:
        """Over a full window; None where a round of it lacks the figure."""
        values = [getattr(figures, name) for figures in self._window]
        if len(values) < self._settings.window_rounds or None in values:
            return None
        return math.fsum(values) / len(values)

    def trouble(self) -> Trouble | None:
        """What is wrong; None where nothing is."""
        gain, gap, drift = self._mean("gain"), self._mean("gap"), self._mean("drift")
        settings, rounds = self._settings, f"over {self._settings.window_rounds} rounds"
        if drift is not None and drift > self._max_drift:
            limit = f"expected at most {self._max_drift:g} (health.max_drift); {GENTLER}"
            return Trouble(f"the model drifted {drift:.2f} of a change of seed {rounds}, {limit}", True)
        if gain is not None and self.best.proved and self._declined(gain):
            best = f"{self.best.gain:+.3g} up to round {self.best.round + 1}"
            return Trouble(f"the reward is {gain:+.3g} against the base {rounds}, and was {best}; {CLOSER}", True)
        if gap is not None and self._gap_was_low and gap > settings.max_reward_gap:
            return Trouble(
                f"the surrogate ranks no longer as the reward does: gap {gap:.2f} {rounds}; {CLOSER}", self.best.proved
            )
        if gain is not None and gain < -settings.decline_errors * self._error():
            return Trouble(f"the reward is {gain:+.3g} against the base {rounds}; {CLOSER}", False)
        return None

    def _error(self) -> float:
        """Standard error of a window's mean gain, by differences of successive rounds, which a trend hardly affects."""
        if not self._differences:
            return 0.0
        return math.sqrt(self._squares / self._differences / self._settings.window_rounds)

    def _declined(self, gain: float) -> bool:
        fell = self.best.gain - gain
        return (
            fell > self._settings.decline_errors * math.sqrt(2) * self._error() and gain < KEPT_SHARE * self.best.gain
        )

    def rolled_back(self) -> None:
        """Start a new window, since the generator has its best weights again."""
        self.roll_backs += 1
        self._window, self._last_gain = [], None

    def begin_again(self) -> None:
        """Forget the best, and the window: the generator is where it began."""
        self.best, self._window, self._last_gain = Best(), [], None

    def state(self) -> dict[str, Any]:
        """All that it knows, for JSON."""
        return {
            "best": self.best,
            "roll_backs": self.roll_backs,
            "window": self._window,
            "last_gain": self._last_gain,
            "noise": [self._squares, self._differences],
            "gap_was_low": self._gap_was_low,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        self.best, self.roll_backs = Best(*state["best"]), state["roll_backs"]
        self._window = [Figures(*figures) for figures in state["window"]]
        self._last_gain, (self._squares, self._differences) = state["last_gain"], state["noise"]
        self._gap_was_low = state["gap_was_low"]
