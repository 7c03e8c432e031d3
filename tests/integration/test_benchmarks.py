"""The benchmarks run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_reward_benchmark_measures_everything_it_promises() -> None:
    """Bug: a change of the reward API breaks the benchmark, and nobody notices until a figure is wanted."""
    command = [sys.executable, "-m", "benchmarks.rewards", "--quick"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    table, _, line = done.stdout.strip().rpartition("\n")
    report = json.loads(line)
    figures = {figure["name"]: figure for figure in report["figures"]}
    for name in (
        "scores from the cache / FastAPI handler that reads the body",
        "unknown PNGs: checked, scored, stored",
        "calls of a reward: p99",
        "slow reward (100 ms, 8 calls at once): time over the ideal",
        "memory added by 200 requests after warm-up",
    ):
        assert figures[name]["wanted"]
        assert name in table
    assert all(figure["low"] <= figure["median"] <= figure["high"] for figure in report["figures"])
    assert all(figure["met"] is None for figure in report["figures"]), "a smoke test judges nothing"
    assert report["memory_mib"]
