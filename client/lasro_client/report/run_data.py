"""What a run folder holds, read for the report: any file may still be missing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lasro.errors import LasroError, NotFoundError, WireError
from lasro.functional.reward_totals import RewardObjective, Scale, Totals, Values, scale_of, totals
from lasro.num_steps import ONE_AND_TWO, NumSteps
from lasro_client.evaluation.paired_statistics import differences
from lasro_client.evaluation.result import Evaluation, load_evaluation
from lasro_client.report.charts import NUM_TONES
from lasro_client.run.round_record import RoundRecord, Stage, read_log
from lasro_client.run.start_findings import read_audit
from lasro_client.run.stopped import STOPPED_FILE

RATE_ROUNDS = 20


@dataclass(frozen=True)
class RunData:
    """A run folder as it is now. None or empty where a file is not there yet."""

    folder: Path
    config: dict[str, Any]
    rounds: list[RoundRecord]
    """Of log.jsonl, in order."""
    before: Evaluation | None
    after: Evaluation | None
    drift: dict[str, Any] | None
    summary: dict[str, Any] | None
    audit: dict[str, Any] | None = None
    """What the run found at its start; None for one that had no audit."""
    stopped: str | None = None
    """Why the run ended before it was finished; None while it goes on, and where it was killed."""

    @property
    def name(self) -> str:
        return str(self.config.get("name", self.folder.name))

    @property
    def finished(self) -> bool:
        return self.summary is not None

    @property
    def last(self) -> RoundRecord | None:
        """The newest round; None before the first."""
        return self.rounds[-1] if self.rounds else None

    @property
    def steps(self) -> tuple[NumSteps, ...]:
        """Numbers of steps that it samples, trains and evaluates, fewest first."""
        return tuple((self.config.get("train") or {}).get("steps", ONE_AND_TWO))

    @property
    def tones(self) -> dict[NumSteps, int]:
        """In which the curves of each number of steps are drawn."""
        return {num_steps: i % NUM_TONES + 1 for i, num_steps in enumerate(self.steps)}

    @property
    def timesteps(self) -> list[int] | None:
        """Of the steps; None for the scheduler's own."""
        return self.config.get("train", {}).get("timesteps")

    def stage(self, stage: Stage) -> list[RoundRecord]:
        """The rounds of one stage of the method."""
        return [record for record in self.rounds if record.stage == stage]

    @cached_property
    def objective(self) -> RewardObjective:
        """That of the settings; where they name no reward of the evaluation, the sum of all that it has."""
        rewards = self.config.get("rewards", [])
        scored = [reward["name"] for reward in rewards] if self.before is None else list(self.before.rewards)
        rewards = [reward for reward in rewards if reward["name"] in scored]
        found = RewardObjective(
            weights={reward["name"]: reward.get("weight", 1.0) for reward in rewards},
            combine=self.config.get("objective", {}).get("combine", "sum"),
            floors={reward["name"]: reward["floor"] for reward in rewards if reward.get("floor") is not None},
            normalised=[reward["name"] for reward in rewards if reward.get("normalise")],
        )
        return found if found.required_rewards else RewardObjective(dict.fromkeys(scored, 1.0))

    def combined(self, evaluation: Evaluation, num_steps: NumSteps) -> Totals:
        """Totals per prompt by the run's objective; normalised rewards by the base's, of all numbers of steps together.

        All NaN without a base or without rewards, and where the objective cannot combine them, which the trainer
        reports.
        """
        rewards = {name: _column(evaluation, name, num_steps) for name in self.objective.weights}
        count = len(evaluation.prompts)
        missing = Totals(np.full(count, np.nan), np.zeros(count, bool), np.zeros(count))
        if not rewards or self.before is None:
            return missing
        try:
            return totals(rewards, self.objective, _scales(self.before, self.objective.normalised))
        except WireError:
            return missing

    def totals(self, evaluation: Evaluation, num_steps: NumSteps) -> list[float | None]:
        """Total per prompt; None where a reward that counts is missing, or a guard vetoed the image."""
        return [
            None if math.isnan(total) else total
            for total in self.combined(evaluation, num_steps).valid_total_N.tolist()
        ]

    def vetoed(self, evaluation: Evaluation, num_steps: NumSteps) -> list[bool]:
        """Whether a guard vetoed the image, per prompt."""
        return self.combined(evaluation, num_steps).vetoed_N.tolist()

    def gains(self, num_steps: NumSteps) -> list[float | None]:
        """Total after minus before, per prompt; None where either is missing, empty before the end."""
        if self.before is None or self.after is None or self.before.prompts != self.after.prompts:
            return []
        return differences(self.totals(self.before, num_steps), self.totals(self.after, num_steps))


def _column(evaluation: Evaluation, name: str, num_steps: NumSteps) -> Values:
    rewards = evaluation.rewards.get(name)
    found = (rewards or {}).get(num_steps)
    return np.array([None] * len(evaluation.prompts) if found is None else found, dtype=float)


def _scales(before: Evaluation, rewards: Iterable[str]) -> dict[str, Scale]:
    return {name: scale_of([_column(before, name, num_steps) for num_steps in before.steps]) for name in rewards}


def read_run(folder: Path) -> RunData:
    """Read what is there; raises NotFoundError only where the folder itself is missing."""
    if not folder.is_dir():
        raise NotFoundError(f"{folder}: no such run folder; `lasro runs ls` lists them")
    return RunData(
        folder=folder,
        config=read_object(folder / "config.json") or {},
        rounds=read_log(folder / "log.jsonl"),
        before=_read_evaluation(folder / "evaluation" / "before.json"),
        after=_read_evaluation(folder / "evaluation" / "after.json"),
        drift=read_object(folder / "drift.json"),
        summary=read_object(folder / "summary.json"),
        audit=read_audit(folder),
        stopped=(read_object(folder / STOPPED_FILE) or {}).get("reason"),
    )


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where the file is missing or something else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_strings(path: Path) -> list[str]:
    """A JSON list as strings; empty where the file is missing or something else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return []
    return [str(entry) for entry in value] if isinstance(value, list) else []


def _read_evaluation(path: Path) -> Evaluation | None:
    try:
        return load_evaluation(path)
    except LasroError:
        return None


def points(rounds: Iterable[RoundRecord], read: Callable[[RoundRecord], float | None]) -> list[tuple[int, float]]:
    """(rounds done, value) where the value was measured and is finite."""
    values = ((record.round + 1, read(record)) for record in rounds)
    return [(done, value) for done, value in values if value is not None and math.isfinite(value)]


def seconds_left(rounds: list[RoundRecord]) -> float | None:
    """Estimated time to the last round, from the pace of the newest rounds; None before two rounds are in, and while
    before it trains in earnest: how long ranking and pilot take is not known."""
    if len(rounds) < 2 or rounds[-1].is_searching:
        return None
    first, last = rounds[-RATE_ROUNDS:][0], rounds[-1]
    if last.round <= first.round:
        return None
    pace_s = (last.elapsed_s - first.elapsed_s) / (last.round - first.round)
    return max(0.0, pace_s * (last.num_rounds - last.round - 1))
