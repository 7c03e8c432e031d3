"""The benchmarks run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.proof
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


@pytest.mark.proof
@pytest.mark.timeout(600)
def test_real_size_goes_all_the_way_with_a_tiny_model(tmp_path: Path) -> None:
    """Bug: a change of a run, of the doctor or of what stock diffusers reads breaks the script, and it is found out
    only after the half hour that it takes in full."""
    command = [sys.executable, "-m", "benchmarks.real_size", "--tiny", "--size", "64"]
    command += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "results")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stderr
    [file] = (tmp_path / "results").glob("*.json")
    report = json.loads(file.read_text())
    assert file.with_suffix(".md").read_text().strip() in done.stdout
    train = report["stages"]["train"]
    assert "lasro_surrogate_trainer" not in train["peaks"]
    assert train["peaks"]["lasro_client.cli.main"] >= train["shares"]["lasro_client.cli.main"] > 100 << 20
    assert sum(train["shares"].values()) == train["together"] >= train["of_files"] > 0
    assert report["round"]["grad_norm"] > 0
    assert report["stock"]["adapted_layers"] > 100
    assert report["stock"]["image"] == [64, 64, 3]
    assert set(report["doctor"]) == {"client"}
    assert 0.7 < report["doctor"]["client"]["ratio"] < 1.6


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_methods_are_trained_measured_and_shown_and_not_done_twice(tmp_path: Path) -> None:
    """Bug: a change of a run's log, folder or settings breaks the benchmark, and a night is lost before it is seen."""
    command = [sys.executable, "-m", "benchmarks.methods"]
    run = [*command, "run", "--tiny", "--out", str(tmp_path / "runs")]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" min") >= 3
    again = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=80, check=False)
    assert again.stdout.count("done before") == 3
    report = [*command, "report", str(tmp_path / "runs"), "--docs", str(tmp_path / "docs")]
    done = subprocess.run(report, cwd=ROOT, capture_output=True, text=True, timeout=80, check=False)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "docs" / "results.md").read_text()
    assert all(f"| `{name}`: " in text for name in ("rlcm", "gors", "best-of-n"))
    assert (tmp_path / "docs" / "results" / "brightness-pictures.webp").exists()
