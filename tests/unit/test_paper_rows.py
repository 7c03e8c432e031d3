"""The paper's rows at its own scale: settings of every method and reward, their costs, and the table of their gains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.paper import CONFIGS, METHODS, REWARDS, settings_of, table, without_weights
from lasro.config import differing_keys
from lasro.methods.registry import METHODS as KINDS

ALLOWED = {"method", "model.dtype", "model.autocast", "train.generator_steps"}


@pytest.mark.parametrize("reward", REWARDS)
def test_methods_of_a_reward_differ_in_the_method_alone(reward: str) -> None:
    """Bug: a method with other prompts, calls, drift or LoRA than the one that it is compared with."""
    assert set(METHODS) <= set(KINDS)
    assert {path.stem for path in CONFIGS.glob("*.toml")} == set(REWARDS)
    lasro = settings_of(reward, "lasro").model_dump(mode="json")
    for method in METHODS:
        config = settings_of(reward, method)
        assert config.method.type == method
        keys = {
            key if not key.startswith("method.") else "method"
            for key in differing_keys(lasro, config.model_dump(mode="json"))
        }
        assert keys <= ALLOWED, method


def test_costs_are_computed_from_architectures_that_are_here(tmp_path: Path) -> None:
    """Bug: the architectures have no tokenizers, without which no model is loaded, not even its shapes."""
    config = without_weights(settings_of("image-reward", "lasro"), tmp_path)
    assert config.surrogate.backbone is not None
    for folder in (config.model.path, config.surrogate.backbone.path):
        assert (Path(folder) / "unet" / "config.json").exists()
        assert (Path(folder) / "tokenizer_2" / "tokenizer_config.json").exists()
    assert config.model.unet is None


def test_the_table_has_a_row_for_each_reward_and_number_of_steps(tmp_path: Path) -> None:
    """Guards against gains without their drift, and against a run that is not there yet."""
    assert table(tmp_path).count("\n") == 1
    run = tmp_path / "image-reward" / "rlcm-1"
    run.mkdir(parents=True)
    row = {"before": {"mean": 0.5, "sem": 0.1}, "after": {"mean": 0.75, "sem": 0.1}, "n": 4, "failed": 0}
    row["difference"] = {"mean": 0.25, "sem": None}
    summary = {
        "rewards": {"image-reward": {"one_step": row, "two_step": row}},
        "held_out_drift": {"two_step": {"distance": {"mean": 0.375, "sem": 0.125}}},
        "reward_calls": 512,
    }
    (run / "summary.json").write_text(json.dumps(summary))
    assert table(tmp_path).splitlines()[2:] == [
        "| image-reward/rlcm-1 | image-reward | one step | 0.500 ± 0.100 | +0.250 | 4 | - | 512 |",
        "| image-reward/rlcm-1 | image-reward | two steps | 0.500 ± 0.100 | +0.250 | 4 | 0.375 ± 0.125 | 512 |",
    ]
