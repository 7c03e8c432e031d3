"""`model.shard`: a frozen network in pieces at two processes, against the whole one of a single process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sharded_update
from safetensors.numpy import load_file
from started_peers import started

from lasro.config import RunSettings
from lasro.errors import ConfigError
from lasro.training.distributed import DistributedContext
from lasro_client.run.round_record import Stage
from lasro_client.run.sharded import check_shard

LORA = "pytorch_lora_weights.safetensors"


@pytest.mark.proof
def test_two_processes_of_half_the_network_make_the_updates_of_one(tiny_model_path: Path, tmp_path: Path) -> None:
    """Guards against a base that is predicted with the adapter on, gradients that FSDP averages once more, processes
    that wait for one another because one has more to draw, and weights that stay whole after a pass."""
    printed = [json.loads(each) for each in started(2, sharded_update.__file__, str(tiny_model_path), str(tmp_path))]
    for name, variant in sharded_update.VARIANTS.items():
        alone = sharded_update.updated(str(tiny_model_path), tmp_path / f"one-{name}", DistributedContext(), **variant)
        main, other = (sharded_update.Updated(*each[name]) for each in printed)
        trained = sum(len(values) for values in alone.parameters) * 4
        assert main.held + other.held == pytest.approx(alone.held + trained, rel=0.01), "each has its adapter whole"
        assert main.held < 0.55 * alone.held
        assert main.whole == other.whole == 0 < alone.whole
        assert main.sampled == pytest.approx(alone.sampled, rel=1e-3)
        for step, expected in zip(main.figures, alone.figures, strict=True):
            assert step == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert main.parameters == other.parameters, "all apply the same gradient"
        ours, theirs = (load_file(tmp_path / folder / LORA) for folder in (name, f"one-{name}"))
        assert ours.keys() == theirs.keys()
        size = max(abs(array).max() for array in theirs.values())
        assert max(abs(ours[key] - theirs[key]).max() for key in theirs) < 1e-3 * size


def config(**tables: dict[str, Any]) -> RunSettings:
    model = {"shard": True} | tables.get("model", {})
    train = {"mode": "gradient", "batch_size": 8} | tables.get("train", {})
    others = {name: table for name, table in tables.items() if name not in ("model", "train")}
    named = {"name": "run", "prompts": {"train": "a", "held_out": "b"}, "rewards": [{"name": "any"}]}
    return RunSettings.model_validate(named | others | {"model": model, "train": train})


def test_settings_that_fit() -> None:
    """Guards against a refusal of what works, and of a run that shares nothing out."""
    check_shard(config(), "train", 2)
    check_shard(config(train={"two_step_every": 2}), "train", 4)
    check_shard(config(model={"shard": False, "compile": True}), "pretrain", 1)


@pytest.mark.parametrize(
    ("tables", "stage", "count", "message"),
    [
        ({}, "train", 1, r"model\.shard: got true with one process; start several by accelerate launch"),
        ({}, "pretrain", 2, r"model\.shard: got true in stage 1"),
        ({"model": {"compile": True}}, "train", 2, r"model\.shard: got true together with model\.compile"),
        ({"model": {"quantization": "8bit"}}, "train", 2, r"model\.shard: got true together with model\.quantization"),
        (
            {"train": {"mode": "weights"}},
            "train",
            2,
            r'train\.mode: got weights with model\.shard, expected "gradient"',
        ),
        (
            {"method": {"type": "rlcm"}, "train": {"prompts_per_round": 3}},
            "train",
            2,
            r"train\.prompts_per_round: got 3, expected a multiple of 2, the processes, for method.type rlcm",
        ),
        ({"train": {"two_step_every": 2}}, "train", 3, r"train\.batch_size: got 8, expected a multiple of 6"),
        (
            {"method": {"regulariser": "lcm", "teacher": "t", "teacher_latents": "l"}},
            "train",
            2,
            r"method\.teacher: got t with model\.shard",
        ),
    ],
)
def test_settings_that_do_not(tables: dict[str, Any], stage: Stage, count: int, message: str) -> None:
    """Guards against processes that wait for one another for ever, or that hold the network whole after all."""
    with pytest.raises(ConfigError, match=message):
        check_shard(config(**tables), stage, count)


def test_the_trainer_is_not_asked_to_share_its_network_out() -> None:
    """Guards against a trainer, a process of its own, that leaves its network on the CPU for pieces that never come."""
    assert config().surrogate_run.model.shard is False
