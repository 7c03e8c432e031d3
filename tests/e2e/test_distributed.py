"""Several processes that train one generator, as `accelerate launch` starts them, against one process that does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"]
SETTINGS = ["train.rounds=4", "train.prompts_per_round=3", "train.batch_size=3", "lora.rank=4"]
SETTINGS += ["surrogate.learning_rate=1e-5"]  # an untrained one turns rounding of the last bit into other weights
CURVES = ["loss", "regulariser", "grad_norm", "score", "bt_loss", "fresh_pair_accuracy"]
CURVES += ["total", "reference", "gain", "drift"]


def start(command: list[str], stage: str, config_path: Path, folder: Path, *settings: str) -> subprocess.Popen[str]:
    options = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    return subprocess.Popen(
        [*command, "lasro_client.cli.main", stage, str(config_path), "--out", str(folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def run(command: list[str], stage: str, config_path: Path, folder: Path, *settings: str) -> str:
    output, errors = start(command, stage, config_path, folder, *settings).communicate(timeout=280)
    assert "Traceback" not in errors, errors
    return output


def log_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def figures(entry: Any) -> list[float]:
    """Of an entry of a log line, null ones as -1."""
    values = entry.values() if isinstance(entry, dict) else [entry]
    return [-1.0 if value is None else value for value in values]


def check_same_curves(folder: Path, expected_folder: Path) -> None:
    lines, expected = log_lines(folder), log_lines(expected_folder)
    assert [line["round"] for line in lines] == [line["round"] for line in expected]
    for line, other in zip(lines, expected, strict=True):
        for key in (key for key in CURVES if key in other):
            assert figures(line[key]) == pytest.approx(figures(other[key]), rel=1e-4, abs=1e-6), (line["round"], key)
        assert line["reward_calls"] == other["reward_calls"]
    assert any(line.get("loss") for line in expected) or expected[0]["stage"] == "pretrain"


def run_and_resume(config_path: Path, folder: Path, *settings: str) -> None:
    """By two processes, stopped after the first round and started again."""
    first = start(LAUNCH, "train", config_path, folder, *settings)
    while not (folder / "log.jsonl").exists():
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGTERM)
    _, errors = first.communicate(timeout=60)
    assert "the same command goes on from there" in errors, errors
    assert len(log_lines(folder)) < 4
    printed = run(LAUNCH, "train", config_path, folder, *settings)
    assert printed.count("report.html") == 1


@pytest.mark.proof
def test_two_processes_train_as_one_does_and_resume(config_path: Path, tmp_path: Path) -> None:
    """Guards against gradients that are averaged wrongly over shares of unequal size, moments of one share, the same
    noise in both, files that both write, and processes that disagree about when to stop."""
    one, two = tmp_path / "one", tmp_path / "two"
    run([sys.executable, "-m"], "train", config_path, one)
    run_and_resume(config_path, two)
    check_same_curves(two, one)
    ours, theirs = (load_file(folder / "adapter" / "pytorch_lora_weights.safetensors") for folder in (two, one))
    size = max(abs(array).max() for array in theirs.values())
    assert max(abs(ours[name] - theirs[name]).max() for name in theirs) < 1e-3 * size


@pytest.mark.proof
def test_two_processes_of_half_the_network_train_and_resume(config_path: Path, tmp_path: Path) -> None:
    """Guards against a main process that evaluates, draws pictures or exports alone while the other waits.

    Weights in pieces have no channels-last format, so latents differ in the sixth digit, now and then a JPEG's bytes
    by them, and in turn what is learned of near ties: tests/unit/test_sharding.py compares updates.
    """
    one, two = tmp_path / "one", tmp_path / "two"
    settings = ["train.mode=gradient", "train.batch_size=4"]
    run([sys.executable, "-m"], "train", config_path, one, *settings)
    run_and_resume(config_path, two, *settings, "model.shard=true")
    lines, expected = log_lines(two), log_lines(one)
    assert [line["round"] for line in lines] == [line["round"] for line in expected] == [0, 1, 2, 3]
    for line, other in zip(lines, expected, strict=True):
        assert line["reward_calls"] == other["reward_calls"]
        for key in ("total", "reference"):
            assert figures(line[key]) == pytest.approx(figures(other[key]), rel=0.02), (line["round"], key)
    ours, theirs = (load_file(folder / "adapter" / "pytorch_lora_weights.safetensors") for folder in (two, one))
    assert {name: array.shape for name, array in ours.items()} == {name: each.shape for name, each in theirs.items()}


@pytest.mark.proof
def test_stage_1_on_two_processes(config_path: Path, tmp_path: Path) -> None:
    """Guards against a stage 1 whose processes draw the same groups, or whose probe generators differ."""
    one, two = tmp_path / "one", tmp_path / "two"
    run([sys.executable, "-m"], "pretrain", config_path, one)
    run(LAUNCH, "pretrain", config_path, two)
    check_same_curves(two, one)
    assert (two / "base_rewards.jsonl").read_text() == (one / "base_rewards.jsonl").read_text()
