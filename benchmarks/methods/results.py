"""result.json of a run: written when it is measured, read to skip it, to choose a rate and for the report."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from benchmarks.methods.plan import Cell, Run, run_folder
from benchmarks.methods.prompts import HELD_OUT, TUNING
from benchmarks.methods.variants import VARIANTS
from lasro.files import write_json
from lasro.num_steps import ONE_AND_TWO, NumSteps

RESULT_FILE, ABOUT_FILE, RUN_FOLDER = "result.json", "about.json", "run"
"""Of a run; of the whole benchmark; the folder of `lasro train` in that of a run."""
Result = dict[str, Any]


class Spread(NamedTuple):
    """Mean over seeds, and their standard deviation; of one seed the standard error over its prompts."""

    mean: float
    spread: float | None
    seeds: int


def about(run: Run) -> Result:
    """What a result says of the run itself."""
    return {
        "reward": run.reward.name,
        "variant": run.variant.name,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "tuning": run.is_tuning,
        "max_calls": run.calls,
        "device": f"{platform.machine()}, {os.cpu_count()} cores, torch {version('torch')}",
    }


def folder_of(result: Result) -> Path:
    """Of its run, below that of the benchmark."""
    return run_folder(result["reward"], result["variant"], result["learning_rate"], result["seed"])


def read_result(out: Path, run: Run) -> Result | None:
    """None where the run is not finished."""
    file = out / run.folder / RESULT_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def is_done(result: Result | None) -> bool:
    """Whether a run was measured; one that failed is tried again."""
    return result is not None and "measured" in result


def find_results(out: Path) -> list[Result]:
    """All below a folder, in the order of their paths."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(out.rglob(RESULT_FILE))]


def write_result(out: Path, run: Run, result: Result) -> None:
    write_json(out / run.folder / RESULT_FILE, about(run) | result)


def gain_of(result: Result, prompts: str, steps: NumSteps) -> float | None:
    """Mean gain on a set of prompts; None where the reward scores none of them, or nothing was measured."""
    one = figure(result, prompts, steps, "gain")
    return None if one is None else one["mean"]


def figure(result: Result, prompts: str, steps: NumSteps, name: str) -> dict[str, Any] | None:
    """`gain`, `drift` (changes of seed) or `diversity` as mean and standard error; None where it was not measured."""
    measured = result.get("measured", {}).get(prompts, {}).get(str(steps), {})
    found = measured.get(name)
    if found is not None and name == "drift":
        found = found["ratio"]
    return None if found is None or found["mean"] is None else found


def spread_of(results: Sequence[Result], prompts: str, steps: NumSteps, name: str) -> Spread | None:
    """Over the seeds of a variant; None where none has it."""
    found = [one for one in (figure(result, prompts, steps, name) for result in results) if one is not None]
    if not found:
        return None
    means = [one["mean"] for one in found]
    return Spread(mean(means), stdev(means) if len(means) > 1 else found[0]["sem"], len(means))


def best_rate(results: Iterable[Result]) -> float | None:
    """Of the tuning runs the one whose gain, averaged over one step and two, is greatest; None without any."""
    scores = {}
    for result in results:
        gains = [gain_of(result, TUNING, steps) for steps in ONE_AND_TWO]
        known = [gain for gain in gains if gain is not None]
        if result["tuning"] and known:
            scores[result["learning_rate"]] = mean(known)
    return max(scores, key=lambda rate: scores[rate]) if scores else None


def rate_of(cell: Cell, out: Path) -> float | None:
    """The rate that its final runs are made at, LaSRO's where it has none of its own; None where it is not known."""
    if not cell.variant.rates:
        return rate_of(replace(cell, variant=VARIANTS["lasro"]), out)
    if not cell.needs_tuning:
        return cell.untuned_rate()
    return best_rate(result for run in cell.tuning() if (result := read_result(out, run)) is not None)


def finals_on_held_out(results: Iterable[Result], reward: str, variant: str) -> list[Result]:
    """Those that count, of a variant for a reward."""
    return [
        one
        for one in results
        if (one["reward"], one["variant"], one["tuning"]) == (reward, variant, False)
        and HELD_OUT in one.get("measured", {})
    ]
