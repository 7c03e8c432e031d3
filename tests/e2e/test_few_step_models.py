"""A short run over real services for each kind of few-step model, and its adapter in stock diffusers.

That of SDXL-Turbo is in `test_train.py`, whose services are there anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from few_step_models import SDXL_BASE, TRAILING, load, with_scheduler
from tiny_model import diffusers, write_tiny_model
from tiny_sd15 import write_tiny_sd2, write_tiny_sd15
from trained_few_steps import train_and_compare

from lasro.config import LoraSettings, RewardSettings
from lasro_client.services.local_stack import LocalStack

pytestmark = [
    pytest.mark.proof,
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),  # two adapters
]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Settings of runs that find their services started."""
    rewards = [RewardSettings(name="jpeg-incompressibility", serve="lasro_rewards.jpeg:incompressibility")]
    with LocalStack(tmp_path_factory.mktemp("stack"), rewards) as stack:
        yield [f"services.reward_api={stack.reward_api}", f"services.surrogate_trainer={stack.surrogate_trainer}"]


def sdxl(tmp_path: Path, scheduler: dict[str, Any]) -> Path:
    plain = write_tiny_model(tmp_path / "plain", guidance_embedding=False)
    return with_scheduler(plain, tmp_path / "model", scheduler)


def test_sdxl_lightning(config_path: Path, services: list[str], tmp_path: Path) -> None:
    """Guards against the same in four steps alone, where samples are given by their first noise alone."""
    trailing = {"timestep_spacing": "trailing"}
    train_and_compare(
        config_path,
        services,
        tmp_path,
        sdxl(tmp_path, SDXL_BASE),
        {"scheduler": "euler"},
        lambda config: diffusers.EulerDiscreteScheduler.from_config(config, **trailing),
        num_steps=4,
    )


def test_hyper_sd(config_path: Path, services: list[str], tmp_path: Path) -> None:
    """Guards against the same where a sample keeps a trace of noise."""
    train_and_compare(
        config_path,
        services,
        tmp_path,
        sdxl(tmp_path, SDXL_BASE),
        {"scheduler": "tcd", "eta": 1.0},
        diffusers.TCDScheduler.from_config,
        {"eta": 1.0},
    )


def test_hyper_sd_of_two_steps(config_path: Path, services: list[str], tmp_path: Path) -> None:
    """Guards against the same with no noise between steps, by a sampler that takes no timesteps of one's own."""
    trailing = {"timestep_spacing": "trailing"}
    train_and_compare(
        config_path,
        services,
        tmp_path,
        sdxl(tmp_path, SDXL_BASE),
        {"scheduler": "ddim"},
        lambda config: diffusers.DDIMScheduler.from_config(config, **trailing),
    )


def test_lcm_lora_on_a_stock_checkpoint(config_path: Path, services: list[str], tmp_path: Path) -> None:
    """Guards against a trainer whose trunk lacks the base adapter, or one that is in what is written."""
    folder = sdxl(tmp_path, SDXL_BASE)
    maker = load(folder, scheduler="lcm")
    for parameter in maker.add_lora(LoraSettings(rank=2), seed=0):
        parameter.data += 0.02
    maker.save_lora(tmp_path / "lcm-lora", LoraSettings(rank=2))
    settings = {"scheduler": "lcm", "base_adapter": str(tmp_path / "lcm-lora")}
    train_and_compare(config_path, services, tmp_path, folder, settings, diffusers.LCMScheduler.from_config)


def test_dmd2(config_path: Path, services: list[str], tmp_path: Path) -> None:
    """Guards against the same at timesteps of its own, the first two of four."""
    chosen, lcm = {"timesteps": [999, 749]}, diffusers.LCMScheduler.from_config
    train_and_compare(
        config_path, services, tmp_path, sdxl(tmp_path, SDXL_BASE), {"scheduler": "lcm"} | chosen, lcm, chosen
    )


def test_sd_turbo(config_path: Path, services: list[str], tmp_path: Path) -> None:
    """Guards against the same with one text encoder and v-prediction."""
    scheduler = diffusers.EulerDiscreteScheduler.from_config(TRAILING | {"prediction_type": "v_prediction"})
    train_and_compare(config_path, services, tmp_path, write_tiny_sd2(tmp_path / "model", scheduler))


def test_an_lcm_of_the_sd15_class(config_path: Path, services: list[str], tmp_path: Path) -> None:
    """Guards against a run that takes a second text encoder, or the micro-conditioning of SDXL, for granted."""
    train_and_compare(config_path, services, tmp_path, write_tiny_sd15(tmp_path / "model", guidance_embedding=False))
