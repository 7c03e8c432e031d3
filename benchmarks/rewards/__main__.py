"""`python -m benchmarks.rewards`: the reward API measured as its own process, each figure beside its limit.

One uvicorn worker, eight PNGs of 128 x 128 pixels a request, msgpack, loopback, embedded Redis, trivial rewards in a
process of their own. Prints a table and the same as one line of JSON; exit status 1 where a limit is missed.
`--quick` only tries whether everything runs: its figures mean nothing, and none is judged.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rewards import pictures
from benchmarks.rewards.figures import Figure, machine, table
from benchmarks.rewards.inbound import scoring, slow
from benchmarks.rewards.load import run
from benchmarks.rewards.memory import growth
from benchmarks.rewards.outbound import calling
from benchmarks.rewards.processes import DistributedContext


@dataclass(frozen=True)
class Plan:
    """How often and how long."""

    repetitions: int = 7
    seconds: float = 2.0
    slow_repetitions: int = 3
    slow_calls: int = 400
    requests: int = 100_000


QUICK = Plan(repetitions=1, seconds=0.1, slow_repetitions=1, slow_calls=16, requests=200)


def measure(plan: Plan) -> tuple[list[Figure], dict[str, Any]]:
    """All figures, and what else is worth keeping."""
    with tempfile.TemporaryDirectory(prefix="lasro-bench-") as folder, DistributedContext(Path(folder)) as processes:
        started = machine()
        figures = scoring(processes, plan.repetitions, plan.seconds)
        trivial = f"{processes.apps['scorer'].url}/{pictures.IMAGES}/0"
        figures += run(calling(trivial, pictures.encoded(), plan.repetitions, plan.seconds))
        figures.append(slow(processes, plan.slow_repetitions, plan.slow_calls))
        added, sizes_mib = growth(processes, plan.requests)
        figures.append(added)
    return figures, {"machine": started, "memory_mib": [round(size, 2) for size in sizes_mib]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a few seconds, nothing judged")
    judged = not parser.parse_args().quick
    figures, more = measure(Plan() if judged else QUICK)
    print(table(figures, judged))
    print(json.dumps({"figures": [figure.as_dict(judged) for figure in figures]} | more))
    if judged and any(figure.missed for figure in figures):
        sys.exit(1)


if __name__ == "__main__":
    main()
