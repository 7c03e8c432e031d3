"""The benchmarks run."""

from __future__ import annotations

import json
import os
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
@pytest.mark.parametrize("method", ["lasro", "rlcm"])
def test_a_row_of_the_paper_runs_with_a_tiny_model(method: str, tiny_model_path: Path, tmp_path: Path) -> None:
    """Bug: settings that load and then fail on the first day of a GPU, or a summary that the table cannot read."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\na green star\n")
    source = json.dumps(str(prompts))
    settings = [
        f"model.path={tiny_model_path}", f"model.unet={tiny_model_path / 'unet'}",
        f"surrogate.backbone={tiny_model_path}", "model.device=cpu", 'model.dtype="float32"',
        f"prompts.train={source}", f"prompts.held_out={source}", f"prompts.drift={source}",
        'rewards=[{name="brightness", serve="torch_rewards:brightness"}]',
        "train.rounds=3", "train.prompts_per_round=2", "train.seeds_per_prompt=2", "train.batch_size=4",
        "evaluation.prompts=2", "evaluation.drift_prompts=1",
    ]  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.paper"]
    options = [part for setting in settings for part in ("--set", setting)]
    folder = tmp_path / "paper" / "image-reward" / f"{method}-7"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "support"), *sys.path])}
    run = [*command, "run", "image-reward", method, "--seed", "7", "--out", str(folder), *options]
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    shown = subprocess.run(
        [*command, "table", str(tmp_path / "paper")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"image-reward/{method}-7 | brightness | two steps" in shown.stdout


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
