"""Runs as a Markdown table, and a picture for each reward."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.frontier.envelope import Point
from benchmarks.frontier.limit import RESULTS, points_of
from benchmarks.frontier.picture import Panel, picture
from benchmarks.frontier.run import RESULT_FILE
from benchmarks.markdown import markdown_table
from lasro.num_steps import ONE_AND_TWO

COLUMNS = (
    "reward", "prompts", "seed", "one step: gain at drift", "of the limit", "two steps: gain at drift", "of the limit",
    "calls", "minutes", "how it ended",
)  # fmt: skip
Run = dict[str, Any]


def find_runs(folders: Iterable[Path]) -> list[Run]:
    """What stands in the frontier.json files below these folders, by reward, prompts and seed."""
    files = {file for folder in folders for file in folder.rglob(RESULT_FILE)}
    runs = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return sorted(runs, key=lambda run: (run["reward"], run["prompts"], run["seed"], run["settings"]))


def markdown(runs: Sequence[Run]) -> str:
    """A row for each run; `settings` other than default follow the reward."""
    return markdown_table(COLUMNS, map(_row, runs))


def _row(run: Run) -> list[str]:
    name = run["reward"] + "".join(f", `{setting}`" for setting in run["settings"])
    calls = " + ".join(f"{count:,} {phase}" for phase, count in run["calls"].items()) or "0"
    status = run["ended"] if run["status"] == 0 else f"status {run['status']}: {run['ended']}"
    steps = [cell for num_steps in ONE_AND_TWO for cell in _cells(run, str(num_steps))]
    return [name, run["prompts"], str(run["seed"]), *steps, calls, f"{run['minutes']:.1f}", status.replace("|", "/")]


def _cells(run: Run, steps: str) -> tuple[str, str]:
    if "measured" not in run:
        return "none", ""
    gain, drift = run["measured"][steps]["gain"], run["measured"][steps]["drift"]["ratio"]
    share = (run["share_of_limit"] or {}).get(steps)
    text = f"{gain['mean']:+.4g} ± {gain['sem']:.2g} at {drift['mean']:.2f} (n = {gain['n']})"
    return text, f"{mean(share):.0%}" if share else ""


def pictures(runs: Sequence[Run], folder: Path, limits: Path = RESULTS) -> list[Path]:
    """`folder`/REWARD-PROMPTS.svg for each reward that has a run or a limit; returns the files."""
    names = {(run["reward"], run["prompts"]) for run in runs}
    names |= {(reward, prompts) for reward, _, prompts in (file.stem.rpartition("-") for file in limits.glob("*.json"))}
    written = []
    folder.mkdir(parents=True, exist_ok=True)
    for reward, prompts in sorted(names):
        chosen = [run for run in runs if (run["reward"], run["prompts"]) == (reward, prompts) and "measured" in run]
        file = limits / f"{reward}-{prompts}.json"
        limit = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"true_gradient": []}
        panels = [
            Panel(
                title, list(points_of(limit, steps).values()), [_point(run["measured"][str(steps)]) for run in chosen]
            )
            for steps, title in zip(ONE_AND_TWO, ("one step", "two steps"), strict=True)
        ]
        written.append(folder / f"{reward}-{prompts}.svg")
        written[-1].write_text(picture(f"{reward}, {prompts}", panels), encoding="utf-8")
    return written


def _point(measured: dict[str, Any]) -> Point:
    return Point(measured["drift"]["ratio"]["mean"], measured["gain"]["mean"], measured["gain"]["sem"] or 0.0)
