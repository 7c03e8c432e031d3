"""The curves of runs, read from their logs: gain of each round's samples over the base's of the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.methods.report.figure import Line
from benchmarks.methods.results import RUN_FOLDER, Result, folder_of
from lasro.num_steps import NumSteps
from lasro_client.report.charts import Point, moving_average
from lasro_client.run.round_record import RoundRecord, read_log

Value = Callable[[RoundRecord, NumSteps], float | None]


def gain(record: RoundRecord, steps: NumSteps) -> float | None:
    return record.rewards.gain.get(steps)


def drift(record: RoundRecord, steps: NumSteps) -> float | None:
    """In changes of prompt, as `train.drift_budget`."""
    return record.generator.distance.get(steps)


def calls(record: RoundRecord, steps: NumSteps) -> float:
    return record.reward_calls


def minutes(record: RoundRecord, steps: NumSteps) -> float:
    return record.elapsed_s / 60


def lines(
    out: Path, results: Sequence[Result], names: Sequence[str], steps: NumSteps, x: Value, y: Value
) -> list[Line]:
    """Moving averages of `y` over `x`, a line for each run; its colour is the place of its variant among `names`."""
    found = []
    for result in results:
        records = read_log(out / folder_of(result) / RUN_FOLDER / "log.jsonl")
        points = smoothed(records, steps, x, y)
        if points:
            found.append(Line(names.index(result["variant"]), points))
    return found


def smoothed(records: Sequence[RoundRecord], steps: NumSteps, x: Value, y: Value) -> list[Point]:
    """Of the rounds of stage 2 that have both. Drift is averaged as well, since its rounds are as noisy."""
    pairs = [(x(one, steps), y(one, steps)) for one in records if one.stage == "train"]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    xs, ys = [a for a, _ in known], [b for _, b in known]
    return list(zip(moving_average(xs) if x is drift else xs, moving_average(ys), strict=True))
