"""Both stages over real processes: the local stack, a real Redis, a real reward, a tiny random model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console

from lasro.config import RunSettings, load_config
from lasro.errors import ConfigError, ConflictError
from lasro.wire import unpack_tensors
from lasro_client.pretrain import pretrain
from lasro_client.train import train

CONFIG = """
name = "tiny"
[model]
path = "{model}"
device = "cpu"
[prompts]
train = "train.txt"
held_out = "held-out.txt"
drift = "drift.txt"
[[rewards]]
name = "jpeg-incompressibility"
serve = "lasro_rewards.jpeg:incompressibility"
[surrogate]
tie_margin = 0.0
head_channels = 8
held_out_share = 0.3
[pretrain]
rounds = 4
prompts_per_round = 2
seeds_per_prompt = 3
scout_after = 1
scout_rounds = 2
final_steps = 3
[lora]
rank = 2
[train]
rounds = 4
prompts_per_round = 1
seeds_per_prompt = 3
batch_size = 2
surrogate_steps = 1
warmup_rounds = 1
checkpoint_rounds = 2
report_rounds = 2
[evaluation]
prompts = 3
drift_prompts = 2
"""
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory, tiny_model_path: Path) -> Path:
    folder = tmp_path_factory.mktemp("config")
    (folder / "train.txt").write_text("a red star\na blue square\na green ring\n")
    (folder / "held-out.txt").write_text("a red ring\na blue star\na pink heart\n")
    (folder / "drift.txt").write_text("dog face\nred apple\n")
    (folder / "tiny.toml").write_text(CONFIG.format(model=tiny_model_path))
    return folder / "tiny.toml"


@pytest.fixture(scope="module")
def finished(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunSettings, Path, dict[str, Any]]:
    """Stage 1, then stage 2 from its surrogate."""
    folder = tmp_path_factory.mktemp("runs")
    surrogate = pretrain(load_config(config_path), folder / "stage1", QUIET)
    config = load_config(config_path, [f"train.initial_surrogate={surrogate}"])
    return config, folder / "stage2", train(config, folder / "stage2", QUIET)


def log_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_stage_one_leaves_a_trained_surrogate(finished: tuple[RunSettings, Path, dict[str, Any]]) -> None:
    """Guards against a surrogate file of untrained weights, and against a summary that claims more than was done."""
    folder = finished[1].parent / "stage1"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["rounds"] == 4
    assert summary["surrogate_steps"] == 4 * 4 + 3
    tensors, _ = unpack_tensors((folder / "surrogate.safetensors").read_bytes())
    assert all(array.dtype == "float16" for array in tensors.values())
    assert [line["stage"] for line in log_lines(folder)] == ["pretrain"] * 4
    images = [2 * 3 * 2] * 4
    images[2] *= 2
    assert summary["reward_calls"] == sum(images), "one scout was out, for one round"
    assert (folder / "report.html").stat().st_size > 1000


def test_stage_two_leaves_all_it_promises(finished: tuple[RunSettings, Path, dict[str, Any]]) -> None:
    """Guards against a run that ends without a summary, adapter, report or the figures in them."""
    _, folder, summary = finished
    assert summary == json.loads((folder / "summary.json").read_text())
    assert summary["rounds"] == 4
    assert summary["prompts"] == 3
    figures = summary["rewards"]["jpeg-incompressibility"]["two_step"]
    assert figures["difference"]["mean"] == pytest.approx(figures["after"]["mean"] - figures["before"]["mean"])
    assert summary["drift"]["n"] == 2
    lines = log_lines(folder)
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    assert lines[0]["loss"] is None, "a warm-up round must not touch the generator"
    assert [line["policy_version"] for line in lines] == [0, 1, 2, 3]
    assert [line["reward_calls"] for line in lines] == sorted(line["reward_calls"] for line in lines)
    assert all(line["failed_samples"] == 0 for line in lines)
    assert (folder / "adapter" / "pytorch_lora_weights.safetensors").is_file()
    assert "data:image/" in (folder / "report.html").read_text()


def test_a_finished_run_is_told_again_without_services(finished: tuple[RunSettings, Path, dict[str, Any]]) -> None:
    """Guards against training a finished run on, which costs reward calls nobody asked for."""
    config, folder, summary = finished
    started = time.monotonic()
    assert train(config, folder, QUIET) == summary
    assert time.monotonic() - started < 5


def test_a_changed_configuration_is_refused(finished: tuple[RunSettings, Path, dict[str, Any]]) -> None:
    """Guards against mixing two runs in one folder: the differing keys are named."""
    config, folder, _ = finished
    changed = config.model_copy(update={"seed": 7, "train": config.train.model_copy(update={"ema": 0.5})})
    with pytest.raises(ConflictError, match=r"differing in seed, train\.ema"):
        train(changed, folder, QUIET)


def test_an_interrupted_run_goes_on(config_path: Path, tmp_path: Path) -> None:
    """Guards against Ctrl-C losing the round under way, leaving processes behind, or a resume that starts over."""
    command = [sys.executable, "-m", "lasro_client.cli", "train", str(config_path), "--out", str(tmp_path / "run")]
    command += ["--set", "train.checkpoint_rounds=100"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "log.jsonl").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    rounds = len(log_lines(tmp_path / "run"))
    assert rounds < 4
    summary = train(load_config(config_path, ["train.checkpoint_rounds=100"]), tmp_path / "run", QUIET)
    assert summary["rounds"] == 4
    assert [line["round"] for line in log_lines(tmp_path / "run")] == [0, 1, 2, 3]
    assert json.loads((tmp_path / "run" / "attempt.json").read_text()) == 2


def test_a_spent_budget_ends_the_run_cleanly(config_path: Path, tmp_path: Path) -> None:
    """Guards against a limit that is only shown: 24 pay for 6, 6 and, with the base beside the generator, 12."""
    summary = train(load_config(config_path, ["budget.max_reward_calls=24"]), tmp_path / "run", QUIET)
    assert summary["rounds"] == 3
    assert summary["reward_calls"] == 24
    assert (tmp_path / "run" / "adapter" / "pytorch_lora_weights.safetensors").is_file()


def test_missing_rewards_and_weights_are_named(config_path: Path, tmp_path: Path) -> None:
    """Guards against an hour of sampling before the first error."""
    unserved = load_config(config_path, ['rewards=[{name="nobody-registered-this"}]'])
    with pytest.raises(ConfigError, match="reward nobody-registered-this: not registered"):
        train(unserved, tmp_path / "unserved", QUIET)
    absent = load_config(config_path, ["train.initial_surrogate=./absent.safetensors"])
    with pytest.raises(ConfigError, match=r"absent\.safetensors"):
        train(absent, tmp_path / "absent", QUIET)


def test_a_guarded_run_logs_every_reward(config_path: Path, tmp_path: Path) -> None:
    """Guards against a log in which guards, vetoes or scales are missing, or a total of what was vetoed."""
    settings = [
        'rewards=[{name="jpeg-incompressibility",serve="lasro_rewards.jpeg:incompressibility",normalise=true},'
        '{name="small",serve="lasro_rewards.jpeg:compressibility",weight=0,floor=-0.868}]',
        "train.rounds=2",
        "train.warmup_rounds=0",
        "evaluation.prompts=1",
    ]
    summary = train(load_config(config_path, settings), tmp_path / "run", QUIET)
    assert set(summary["rewards"]) == {"jpeg-incompressibility", "small"}
    lines = log_lines(tmp_path / "run")
    assert 0 < sum(sum(line["vetoed"].values()) for line in lines) < 2 * len(lines), "the floor must tell some apart"
    for line in lines:
        assert set(line["reward"]) == {"jpeg-incompressibility", "small"}
        assert line["scales"]["jpeg-incompressibility"]["deviation"] > 0
        for stage in ("one_step", "two_step"):
            assert 0 <= line["vetoed"][stage] <= 1
            assert (line["total"][stage] is None) == (line["vetoed"][stage] == 1)
    assert "Vetoed" in (tmp_path / "run" / "report.html").read_text()


def test_training_runs_in_float32_whatever_the_weights(finished: tuple[RunSettings, Path, dict[str, Any]]) -> None:
    """Guards against an adapter written in the base's half precision."""
    tensors, _ = unpack_tensors((finished[1] / "adapter" / "pytorch_lora_weights.safetensors").read_bytes())
    assert {str(array.dtype) for array in tensors.values()} == {"float32"}
    assert all(torch.from_numpy(array).isfinite().all() for array in tensors.values())


def test_a_killed_trainer_does_not_end_the_run(config_path: Path, tmp_path: Path) -> None:
    """Guards against a run that dies with its trainer, or goes on from weights that were never published."""
    command = [sys.executable, "-m", "lasro_client.cli", "train", str(config_path), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "log.jsonl").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    (trainer,) = (child for child in children if "lasro_surrogate_trainer" in child.cmdline())
    trainer.kill()
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    lines = log_lines(tmp_path / "run")
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    versions = [line["surrogate_version"] for line in lines]
    assert versions == sorted(set(versions)), "each round must have trained the surrogate once"
