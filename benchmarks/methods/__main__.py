"""`python -m benchmarks.methods`: every method at equal reward calls, the ablations of LaSRO, and the page of both.

plan                  the runs as a table
run [--quick]         do those that are not done; the same command goes on after a stop
report [FOLDER]        docs/results.md, its plots and its pictures, from the folders of the runs
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import lasro.models.quiet  # noqa: F401  (before diffusers)

# isort: split

from benchmarks.methods.plan import REWARDS, SCALES, plan_of
from benchmarks.methods.report.page import write_page
from benchmarks.methods.runner import run_plan
from benchmarks.methods.variants import VARIANTS
from lasro.errors import ConfigError

OUT = Path("runs/bench-method")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.methods", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    plan = commands.add_parser("plan", help="the runs as a table")
    run = commands.add_parser("run", help="do those that are not done")
    report = commands.add_parser("report", help="docs/results.md from the folders of the runs")
    for each in (plan, run, report):
        scale = each.add_mutually_exclusive_group()
        for name in ("quick", "tiny"):
            scale.add_argument(f"--{name}", dest="scale", action="store_const", const=name, default="full")
    run.add_argument("--out", type=Path, help=f"default: {OUT}, or {OUT}-quick")
    run.add_argument("--rewards", nargs="+", choices=REWARDS)
    run.add_argument("--variants", nargs="+", choices=VARIANTS, metavar="NAME", help="methods and ablations, by name")
    report.add_argument("folder", type=Path, nargs="?", help="default: that of run")
    report.add_argument("--docs", type=Path, default=Path("docs"), help="results.md and results/ are written there")
    plan.set_defaults(command=_plan)
    run.set_defaults(command=_run)
    report.set_defaults(command=_report)
    given = parser.parse_args(arguments)
    return given.command(given)


def _plan(given: argparse.Namespace) -> int:
    count = 0
    for cell in plan_of(SCALES[given.scale]):
        rates = cell.variant.rates if cell.needs_tuning else ()
        rate = f"best of {', '.join(f'{one:g}' for one in rates)}" if rates else cell.untuned_rate() or "that of LaSRO"
        settings = " ".join(f"{key}={value}" for key, value in cell.variant.settings.items())
        rate = rate if cell.variant.trains else "none"
        print(f"{cell.reward.name:22} {cell.variant.name:24} {len(cell)} runs, rate {rate}  {settings}")
        count += len(cell)
    print(f"{count} runs")
    return 0


def _run(given: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as Ctrl-C: the run under way ends first
    out = given.out or default_folder(given.scale)
    try:
        failed = run_plan(SCALES[given.scale], out, given.rewards, given.variants, lambda line: print(line, flush=True))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    if failed:
        print(f"{failed} failed; the same command tries them again", file=sys.stderr)
    return 1 if failed else 0


def default_folder(scale: str) -> Path:
    """Each scale has its own."""
    return OUT if scale == "full" else OUT.with_name(f"{OUT.name}-{scale}")


def _report(given: argparse.Namespace) -> int:
    try:
        for file in write_page(given.folder or default_folder(given.scale), given.docs):
            print(file)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
