"""A run by the true gradient on an SD1.5-class model: its own reward next to the TOML file, no surrogate trainer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_sd15 import write_tiny_sd15

from lasro.config import load_config
from lasro.errors import ConfigError
from lasro_client.run.stage1 import pretrain
from lasro_client.run.stage2 import train

CONFIG = """
name = "true-gradient"
method = { type = "true-gradient", regulariser_weight = 0.1 }
model = { path = "model", device = "cpu", guidance = 8.0 }
prompts = { train = "prompts.txt", held_out = "prompts.txt" }
lora = { rank = 2 }
evaluation = { prompts = 1 }

[train]
rounds = 4
prompts_per_round = 1
seeds_per_prompt = 2
batch_size = 2
generator_steps = 1
learning_rate = 1e-2

[[rewards]]
name = "redness"
serve = "redness_beside_the_toml:redness"
"""
REWARD = """
from lasro.torch_reward import torch_reward


@torch_reward
def redness(images_BCHW, prompts, metadata):
    return images_BCHW[:, 0].mean((1, 2)) - images_BCHW[:, 1:].mean((1, 2, 3))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("true-gradient")
    write_tiny_sd15(folder / "model")
    (folder / "run.toml").write_text(CONFIG)
    (folder / "redness_beside_the_toml.py").write_text(REWARD)
    (folder / "prompts.txt").write_text("a red star\na blue square\n")
    return folder


def test_a_run_without_a_surrogate(folder: Path) -> None:
    """Guards against a method that needs no surrogate waiting for one, a second family that no run can use, and a
    reward next to the TOML file that is found from that folder only."""
    config = load_config(folder / "run.toml")
    summary = train(config, folder / "run")
    assert summary["rounds"] == 4
    assert summary["surrogate"] is None
    assert summary["rewards"]["redness"]["one_step"]["after"]["mean"] is not None
    first, second, *_ = map(json.loads, (folder / "run" / "log.jsonl").read_text().splitlines())
    assert first["policy_version"] == 1, "there is no surrogate that would have to rank first"
    assert first["score"]["one_step"] is not None
    assert first["held_out_pair_accuracy"] is None
    assert first["failed_samples"] == second["failed_samples"] == 0
    assert second["gain"]["one_step"] is not None, "the base's samples are there to compare with"
    assert (folder / "run" / "adapter" / "pytorch_lora_weights.safetensors").exists()
    started = {path.stem for path in (folder / "run" / "services").glob("*.log")}
    assert "reward-redness" in started
    assert "surrogate_trainer" not in started


def test_stage_1_of_such_a_method_is_refused(folder: Path) -> None:
    """Guards against hours of stage 1 for a surrogate that nothing will follow."""
    with pytest.raises(ConfigError, match=r"method\.type: got true-gradient, .*needs no surrogate"):
        pretrain(load_config(folder / "run.toml"), folder / "stage1")
