"""What a run folder holds, read for the report: any file may still be missing."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lasro.errors import LasroError, NotFoundError, WireError
from lasro.functional.reward_totals import RewardObjective, Scale, Totals, Values, scale_of, totals
from lasro_client.evaluation.paired_statistics import differences
from lasro_client.evaluation.result import STAGES, Evaluation, load_evaluation

RATE_ROUNDS = 20


@dataclass(frozen=True)
class RunData:
    """A run folder as it is now. None or empty where a file is not there yet."""

    folder: Path
    config: dict[str, Any]
    rounds: list[dict[str, Any]]
    """Lines of log.jsonl in order, one per stage and round."""
    before: Evaluation | None
    after: Evaluation | None
    drift: dict[str, Any] | None
    summary: dict[str, Any] | None

    @property
    def name(self) -> str:
        return str(self.config.get("name", self.folder.name))

    @property
    def finished(self) -> bool:
        return self.summary is not None

    @property
    def last(self) -> dict[str, Any]:
        """The newest round; empty before the first."""
        return self.rounds[-1] if self.rounds else {}

    def stage(self, name: str) -> list[dict[str, Any]]:
        """The rounds of "pretrain" or "train"."""
        return [line for line in self.rounds if line.get("stage") == name]

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

    def combined(self, evaluation: Evaluation, stage: str) -> Totals:
        """Totals per prompt by the run's objective, rewards normalised by what the base got, in one step and two.

        All missing where there is nothing to combine, or what cannot be: the trainer says so when it refuses it.
        """
        rewards = {name: _column(evaluation, name, stage) for name in self.objective.weights}
        count = len(evaluation.prompts)
        missing = Totals(np.full(count, np.nan), np.zeros(count, bool), np.zeros(count))
        if not rewards or self.before is None:
            return missing
        try:
            return totals(rewards, self.objective, _scales(self.before, self.objective.normalised))
        except WireError:
            return missing

    def totals(self, evaluation: Evaluation, stage: str) -> list[float | None]:
        """Total per prompt; None where a reward that counts is missing, or a guard vetoed the image."""
        return [
            None if math.isnan(total) else total for total in self.combined(evaluation, stage).valid_total_N.tolist()
        ]

    def vetoed(self, evaluation: Evaluation, stage: str) -> list[bool]:
        """Whether a guard vetoed the image, per prompt."""
        return self.combined(evaluation, stage).vetoed_N.tolist()

    def gains(self, stage: str) -> list[float | None]:
        """Total after minus before, per prompt; None where either is missing, empty before the end."""
        if self.before is None or self.after is None or self.before.prompts != self.after.prompts:
            return []
        return differences(self.totals(self.before, stage), self.totals(self.after, stage))


def _column(evaluation: Evaluation, name: str, stage: str) -> Values:
    scores = evaluation.rewards.get(name)
    return np.array(getattr(scores, stage) if scores else [None] * len(evaluation.prompts), dtype=float)


def _scales(before: Evaluation, rewards: Iterable[str]) -> dict[str, Scale]:
    return {name: scale_of([_column(before, name, stage) for stage in STAGES]) for name in rewards}


def read_run(folder: Path) -> RunData:
    """Read what is there; raises NotFoundError only where the folder itself is missing."""
    if not folder.is_dir():
        raise NotFoundError(f"{folder}: no such run folder; `lasro runs ls` lists them")
    return RunData(
        folder=folder,
        config=read_object(folder / "config.json") or {},
        rounds=_read_log(folder / "log.jsonl"),
        before=_read_evaluation(folder / "evaluation" / "before.json"),
        after=_read_evaluation(folder / "evaluation" / "after.json"),
        drift=read_object(folder / "drift.json"),
        summary=read_object(folder / "summary.json"),
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


def _read_log(path: Path) -> list[dict[str, Any]]:
    """A round that was repeated after a resume counts once, as it went last; a line being written is skipped."""
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    for line in text.split("\n"):
        try:
            record = json.loads(line)
            key = (str(record["stage"]), int(record["round"]))
        except (ValueError, KeyError, TypeError):
            continue
        lines.pop(key, None)
        lines[key] = record
    return list(lines.values())


def points(rounds: Iterable[dict[str, Any]], *path: str) -> list[tuple[int, float]]:
    """(rounds done, value) of a nested field, where it was measured and is finite."""
    found = []
    for record in rounds:
        value: Any = record
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, int | float) and math.isfinite(value):
            found.append((int(record["round"]) + 1, float(value)))
    return found


def seconds_left(rounds: list[dict[str, Any]]) -> float | None:
    """Estimated time to the last round, from the pace of the newest rounds; None before two rounds are in."""
    recent = points(rounds[-RATE_ROUNDS:], "elapsed_s")
    if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
        return None
    (first, start_s), (last, end_s) = recent[0], recent[-1]
    remaining = int(rounds[-1].get("rounds") or last) - last
    return max(0.0, (end_s - start_s) / (last - first) * remaining)
