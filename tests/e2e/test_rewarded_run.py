"""Runs of methods that learn from rewards themselves, through the real reward API, stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from lasro.config import load_config
from lasro.errors import ConfigError
from lasro_client.run.stage1 import pretrain
from lasro_client.run.stage2 import train

METHODS = ("rlcm", "ddpo", "rebel", "pso-online", "pso-offline", "diffusion-dpo", "gors")
SHORT = ["train.rounds=3", "train.checkpoint_rounds=1", "train.seeds_per_prompt=2", "evaluation.prompts=1"]
SHORT += ["train.warmup_rounds=0", "evaluation.drift_prompts=1", "train.learning_rate=1e-2", "train.warmup_steps=1"]


def check_run(config_path: Path, folder: Path, method: str) -> None:
    config = load_config(config_path, [*SHORT, f"method.type={method}"])
    summary = train(config, folder)
    assert summary["rounds"] == 3
    assert summary["surrogate"] is None
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["policy_version"] == 3
    assert all(line["loss"] is not None and line["score"]["two_step"] is not None for line in lines)
    assert lines[1]["gain"]["two_step"] is not None, "the base's samples are there to compare with"
    assert "surrogate_trainer" not in {path.stem for path in (folder / "services").glob("*.log")}


@pytest.mark.proof
def test_a_run_is_resumed_with_what_it_had_stored(config_path: Path, tmp_path: Path) -> None:
    """Guards against a method whose store is lost between rounds: 2 rounds and then a third are 3 rounds at once."""
    check_run(config_path, tmp_path / "whole", "pso-offline")
    short = [*SHORT, "method.type=pso-offline"]
    train(load_config(config_path, [*short, "train.rounds=2"]), tmp_path / "resumed")
    train(load_config(config_path, short), tmp_path / "resumed")
    ours, theirs = (
        load_file(tmp_path / name / "adapter" / "pytorch_lora_weights.safetensors") for name in ("resumed", "whole")
    )
    assert all((ours[name] == theirs[name]).all() for name in theirs)


@pytest.mark.proof
@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_each_method(config_path: Path, tmp_path: Path, method: str) -> None:
    """Guards against a method that only works without services: three rounds, and an adapter."""
    check_run(config_path, tmp_path / "run", method)
    assert (tmp_path / "run" / "adapter" / "pytorch_lora_weights.safetensors").exists()


@pytest.mark.proof
@pytest.mark.parametrize("method", ["pso-online", "pso-offline"])
def test_a_run_in_two_steps_and_eight(config_path: Path, tmp_path: Path, method: str) -> None:
    """Guards against noises of two steps that longer samples are drawn again from: rounds of both are learned from."""
    settings = [*SHORT, f"method.type={method}", "train.steps=[2,8]"]
    summary = train(load_config(config_path, settings), tmp_path)
    assert [list(rows) for rows in summary["rewards"].values()] == [["two_step", "eight_step"]]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["policy_version"] == 3
    assert all(
        None not in line["score"].values() and list(line["score"]) == ["two_step", "eight_step"] for line in lines
    )


def test_stage_1_of_such_a_method_is_refused(config_path: Path, tmp_path: Path) -> None:
    """Guards against hours of stage 1 for a surrogate that nothing will follow."""
    with pytest.raises(ConfigError, match=r"method\.type: got rlcm, .*needs no surrogate"):
        pretrain(load_config(config_path, ["method.type=rlcm"]), tmp_path)
