"""`python -m tests.chaos`: two runs over real processes while faults come, and what became of their samples.

Prints one JSON line; exit status 1 where a sample was lost, doubled or falsified, a process did not come back, or fewer
faults struck than were asked for. `--break NAME` runs a product with a mistake in it, which must be found.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lasro.errors import LasroError
from tests.chaos.breaks import BREAKS
from tests.chaos.disk import enter_namespace
from tests.chaos.faults import Injector, faults, not_injectable
from tests.chaos.ledger import Ledger
from tests.chaos.power import Power
from tests.chaos.workload import ENOUGH, RUNS, Workload
from tests.chaos.world import World

COLLECT_EVERY_S, PLAIN_EVERY_S = 0.5, 15.0
IDLE_FAULT_S = 4.0
"""Where nothing moves for so long, the next fault comes all the same."""
AHEAD = 1.05
"""Faults run ahead of the samples by so much. The last round waits for them, so that all of them meet work."""
DRAIN_S = 30.0
MODEL = "import sys, pathlib; from tests.support import tiny_model as t; t.write_tiny_model(pathlib.Path(sys.argv[1]))"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--faults", type=int, default=1000, help="that must have struck")
    parser.add_argument("--rounds", type=int, default=128, help="of each of the two runs")
    parser.add_argument("--per-round", type=int, default=40, help="groups in a round, of two samples or more each")
    parser.add_argument("--seed", type=int, default=0, help="of the workload and the order of faults")
    parser.add_argument("--minutes", type=float, default=30.0, help="after which it has failed")
    parser.add_argument("--patience", type=float, default=5.0, help="seconds that the trainer waits for groups at once")
    parser.add_argument("--only", action="append", help="a fault as `by_kind` names it; may be repeated; absent: all")
    parser.add_argument("--break", dest="broken", choices=list(BREAKS), help="a mistake that must be found")
    parser.add_argument("--model", type=Path, help="folder of a tiny model; absent: one is made")
    parser.add_argument("--keep", type=Path, help="folder to leave logs in; absent: they go")
    return parser.parse_args()


class Run:
    """From the first process to the verdict."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given, self.folder = given, folder
        self.workload = Workload(seed=given.seed, rounds=given.rounds, per_round=given.per_round)
        self.workload.write(folder)
        self.violations: list[str] = []

    def ends(self) -> dict[str, str]:
        """How the runs ended that have."""
        paths = {run: self.folder / f"{run}.end" for run in RUNS}
        return {run: path.read_text() for run, path in paths.items() if path.exists()}

    def disturb(self, world: World, ledger: Ledger, injector: Injector, progress: Progress) -> None:
        """Faults and samples side by side, until the runs end."""
        only, total = self.given.only, self.workload.groups
        coming = (fault for fault in faults(self.given.seed) if only is None or fault.name in only)
        task = progress.add_task("samples", total=total, faults=0)
        started = collected = printed = struck = time.monotonic()
        while len(ends := self.ends()) < len(RUNS) and all(end == "done" for end in ends.values()):
            now = time.monotonic()
            if now - started > 60 * self.given.minutes:
                self.violations.append(f"not done after {self.given.minutes:g} minutes")
                return
            world.check()
            if now - collected >= COLLECT_EVERY_S:
                ledger.collect()
                collected = now
                progress.update(task, completed=ledger.groups, faults=injector.count)
                if injector.count >= self.given.faults:
                    (self.folder / ENOUGH).touch()
            due = AHEAD * self.given.faults * ledger.groups / total
            is_idle = now - struck > IDLE_FAULT_S and injector.count < AHEAD * self.given.faults
            if injector.count < due or is_idle:
                injector.next(coming)
                struck = time.monotonic()
            if not progress.console.is_terminal and now - printed >= PLAIN_EVERY_S:
                printed = now
                left_s = (now - started) * (total / max(ledger.groups, 1) - 1)
                progress.console.print(
                    f"{ledger.groups}/{total} groups, {injector.count} faults, about {left_s:.0f} s left",
                    highlight=False,
                )
            time.sleep(0.02)

    def drain(self, ledger: Ledger) -> list[str]:
        """What is left once the trainer has had time to acknowledge it."""
        deadline = time.monotonic() + DRAIN_S
        while (left := ledger.left_over()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left

    def whole(self, progress: Progress) -> dict[str, Any]:
        started = time.monotonic()
        patience_s = self.given.patience
        with World(self.folder, self.given.broken, patience_s) as world, Power(world) as power, progress:
            ready = time.monotonic()
            ledger = Ledger(world, self.workload)
            injector = Injector(world, power, lambda: ledger.groups)
            try:
                self.disturb(world, ledger, injector, progress)
            except LasroError as error:
                self.violations.append(f"{type(error).__name__}: {error}")
            injector.settle()
            ends = self.ends()
            finished = len(ends) == len(RUNS) and all(end == "done" for end in ends.values())
            self.violations += [f"{run}: {end}" for run, end in ends.items() if end != "done"]
            left = self.drain(ledger) if finished else []
            verdict = ledger.verdict(finished)
            if injector.count < self.given.faults and finished:
                self.violations.append(f"{injector.count} faults struck, expected {self.given.faults}")
            self.violations += [*left, *injector.violations, *ledger.violations]
            lines = [line for run in RUNS for line in ledger.lines(run)]
            return {
                "faults": injector.count,
                "samples": ledger.samples,
                **verdict,
                "groups": ledger.groups,
                "rewards_failed": ledger.failed,
                "dead_reward_failed": ledger.mortal_failed,
                "reposted": sum(line.get("reposted", 0) for line in lines),
                "calls_failed": sum("trouble" in line for line in lines),
                "by_kind": dict(sorted(injector.done.items())),
                "recovery_s": {name: round(took_s, 1) for name, took_s in sorted(injector.recovery_s.items())},
                "disk": world.disk.kind,
                "not_injectable": not_injectable(),
                "seed": self.given.seed,
                "broken": self.given.broken,
                "start_s": round(ready - started, 1),
                "wall_s": round(time.monotonic() - started, 1),
                "load": os.getloadavg()[0],
                "violations": self.violations,
            }


def run_in(folder: Path, given: argparse.Namespace) -> bool:
    """Print the line; whether all is well."""
    if given.model is not None:
        (folder / "model").symlink_to(given.model.resolve())
    else:
        subprocess.run([sys.executable, "-c", MODEL, str(folder / "model")], check=True, capture_output=True)
    columns = [TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn()]
    columns += [
        TextColumn("{task.fields[faults]} faults"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    ]
    console = Console(stderr=True)
    line = Run(given, folder).whole(Progress(*columns, console=console, disable=not console.is_terminal))
    print(json.dumps(line))
    return not line["violations"] and not any(line[key] for key in ("lost", "duplicated", "wrong"))


def main() -> None:
    given = arguments()
    enter_namespace("tests.chaos", sys.argv[1:])
    if given.keep is not None:
        given.keep.mkdir(parents=True)
        sys.exit(0 if run_in(given.keep.resolve(), given) else 1)
    with tempfile.TemporaryDirectory(prefix="lasro-chaos-") as folder:
        sys.exit(0 if run_in(Path(folder), given) else 1)


if __name__ == "__main__":
    main()
