"""`python -m benchmarks.frontier`: how good is a run, said exactly.

    limit REWARD        what the true gradient gains at each drift: the limit of what any surrogate can teach
    run REWARD          `lasro train` with default settings, measured on held-out prompts and compared with that limit
    table FOLDER...     the runs as a table, and a picture for each reward

Drift, in changes of seed: mean absolute pixel difference to the base for the same prompt and noise, over that between
two noises of the base.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from benchmarks.frontier.held_out import PROMPT_SPLITS
from benchmarks.frontier.limit import RESULTS, Descent, find_limit, limit_table
from benchmarks.frontier.rewards import DIFFERENTIABLE, REWARDS
from benchmarks.frontier.run import measured_run
from benchmarks.frontier.table import find_runs, markdown, pictures


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.frontier", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    limit = commands.add_parser("limit", help="the true gradient's gain at each drift")
    limit.add_argument("reward", choices=[one.name for one in DIFFERENTIABLE])
    limit.add_argument("--prompts", choices=PROMPT_SPLITS, default="emoji")
    limit.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    limit.add_argument("--file", type=Path, help="default: REWARD-PROMPTS.json in benchmarks/results/frontier")
    for field in fields(Descent):
        limit.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    limit.set_defaults(command=_limit)
    run = commands.add_parser("run", help="a run with default settings, measured")
    run.add_argument("reward", choices=REWARDS)
    run.add_argument("--prompts", choices=PROMPT_SPLITS, default="emoji")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--out", type=Path, required=True, help="a folder of its own")
    run.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="of lasro train")
    run.set_defaults(command=_run)
    table = commands.add_parser("table", help="runs as a table, and a picture for each reward")
    table.add_argument("folders", type=Path, nargs="*")
    table.add_argument("--pictures", type=Path, default=RESULTS, help="folder of the SVG files")
    table.set_defaults(command=_table)
    given = parser.parse_args()
    given.command(given)


def _limit(given: argparse.Namespace) -> None:
    descent = Descent(**{field.name: getattr(given, field.name) for field in fields(Descent)})
    file = given.file or RESULTS / f"{given.reward}-{given.prompts}.json"
    print(limit_table(find_limit(given.reward, given.prompts, given.seeds, descent, file)))


def _run(given: argparse.Namespace) -> None:
    print(markdown([measured_run(given.reward, given.prompts, given.seed, given.out, given.settings)]))


def _table(given: argparse.Namespace) -> None:
    runs = find_runs(given.folders)
    print(markdown(runs))
    for file in pictures(runs, given.pictures):
        print(file)


if __name__ == "__main__":
    main()
