"""Do the runs of a plan that are not done yet, one after the other, and say of each in a line what came of it.

Every run is `lasro train` in a folder of its own, so one that was stopped goes on where it was. One that fails is noted
in its own words, and the next begins; the same command tries it again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.frontier.held_out import PromptSplit
from benchmarks.frontier.run import calls_by_phase, how_it_ended, read_lines, train, write_run
from benchmarks.methods.best_of import measure_best_of
from benchmarks.methods.files import make_files
from benchmarks.methods.measure import Measurer
from benchmarks.methods.plan import Cell, Run, Scale, missing_packages, plan_of
from benchmarks.methods.prompts import HELD_OUT, PROMPT_SETS, TUNING
from benchmarks.methods.results import ABOUT_FILE, Result, figure, is_done, rate_of, read_result, write_result
from lasro.errors import ConfigError
from lasro.files import write_json
from lasro.num_steps import ONE_AND_TWO, title

Execute = Callable[[Run], Result]


@dataclass
class Progress:
    """Of one call of the command."""

    total: int
    seen: int = 0
    failed: int = 0
    minutes: list[float] = field(default_factory=list)
    """Of the runs done now or before."""

    def line(self, run: Run, result: Result, skipped: bool) -> str:
        """What came of a run, and what is left by the mean of those done."""
        left = self.total - self.seen
        words = "done before" if skipped else f"{result['minutes']:.1f} min"
        ahead = "" if not left or not self.minutes else f"; {left} left, about {self._minutes_left(left):.0f} min"
        return f"[{self.seen:3}/{self.total}] {run.folder}: {outcome(result)} ({words}{ahead})"

    def _minutes_left(self, left: int) -> float:
        return left * sum(self.minutes) / len(self.minutes)


def outcome(result: Result) -> str:
    """In words: what was gained at which drift, or why nothing was."""
    if not is_done(result):
        return f"failed, status {result['status']}: {result['ended']}"
    prompts, parts = TUNING if result["tuning"] else HELD_OUT, []
    for steps in ONE_AND_TWO:
        gain, drift = (figure(result, prompts, steps, name) for name in ("gain", "drift"))
        if gain is not None:
            at = "" if drift is None else f" at drift {drift['mean']:.2f}"
            parts.append(f"{title(steps).lower()} {gain['mean']:+.4f} ± {gain['sem'] or 0:.4f}{at}")
    return ", ".join([*parts, f"{sum(result['calls'].values()):,} calls"])


def run_plan(
    scale: Scale,
    out: Path,
    rewards: Collection[str] | None,
    variants: Collection[str] | None,
    say: Callable[[str], None],
) -> int:
    """Do what is left of the named rewards and variants, None for all; returns how many failed."""
    keep_scale(scale, out)
    cells = []
    for cell in plan_of(scale):
        if (rewards is None or cell.reward.name in rewards) and (variants is None or cell.variant.name in variants):
            cells.append(cell)
    for reward in {cell.reward for cell in cells if missing_packages(cell.reward)}:
        say(f"{reward.name}: left out, since it needs pip install 'lasro[{reward.extra}]'")
    cells = [cell for cell in cells if not missing_packages(cell.reward)]
    return do_cells(cells, out, Executor(out), say)


def do_cells(cells: Collection[Cell], out: Path, execute: Execute, say: Callable[[str], None]) -> int:
    """All runs of these cells; returns how many failed."""
    progress = Progress(sum(len(cell) for cell in cells))
    for cell in cells:
        for run in cell.tuning():
            _do(run, out, execute, progress, say)
        rate = rate_of(cell, out)
        if rate is None and cell.variant.trains:
            progress.seen += len(cell.final(None))
            progress.failed += 1
            say(f"{cell.reward.name}/{cell.variant.name}: left out: no run of its grid, or of LaSRO's, was measured")
            continue
        for run in cell.final(rate):
            _do(run, out, execute, progress, say)
    return progress.failed


def _do(run: Run, out: Path, execute: Execute, progress: Progress, say: Callable[[str], None]) -> None:
    result = read_result(out, run)
    skipped = is_done(result)
    if result is None or not skipped:
        write_result(out, run, execute(run))
        result = read_result(out, run)
        assert result is not None
    progress.seen += 1
    progress.failed += not is_done(result)
    progress.minutes.append(result["minutes"])
    say(progress.line(run, result, skipped))


def keep_scale(scale: Scale, out: Path) -> None:
    """Note which scale a folder is of; raises ConfigError where it is of another."""
    file, known = out / ABOUT_FILE, {"scale": scale.name, "calls": dict(scale.calls)}
    if file.exists() and (found := json.loads(file.read_text(encoding="utf-8"))) != known:
        raise ConfigError(f"{out}: holds runs of {found}, expected {known}; give another folder by --out")
    write_json(file, known)


class Executor:
    """Trains and measures; a run that goes on after a stop is the same folder again."""

    def __init__(self, out: Path) -> None:
        self.out, self.measurer = out, Measurer(out)

    def __call__(self, run: Run) -> Result:
        folder = self.out / run.folder
        folder.mkdir(parents=True, exist_ok=True)
        if not run.variant.trains:
            return measure_best_of(run, folder)
        make_files(run.variant, self.out)
        sets = PROMPT_SETS[run.reward.prompts]()
        toml = write_run(folder, run.reward.name, run.reward.serve, PromptSplit(sets.train, sets.tuning, noises=2))
        status, seconds = train(toml, folder, run.settings)
        lines = read_lines(folder / "run" / "log.jsonl")
        result: Result = {"status": status, "minutes": round(seconds / 60, 2), "ended": how_it_ended(folder / "run")}
        result["calls"] = calls_by_phase(lines)
        if (folder / "run" / "summary.json").exists():  # status 1 where nothing could be learned: that is a result
            result["minutes"] = round(self._seconds(folder) / 60, 2)
            result["measured"] = self.measurer.measure(run)
        elif lines == []:
            result["ended"] = last_words(folder / "train.log") or result["ended"]
        return result

    def _seconds(self, folder: Path) -> float:
        """Of the run in all its lives."""
        return json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))["duration_s"]


def last_words(log: Path) -> str:
    """The last line that a command printed; empty where it printed none."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
