"""One update of the generator with score sources whose answers are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lasro.backbone import load_model
from lasro.config import RunSettings
from lasro.errors import NonFiniteError
from lasro_client.generator import GeneratorTrainer

PROMPTS = ["a red star", "a blue square"]


class Slope:
    """Scores of zero whose gradient is the same number everywhere."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def score_and_gradient(
        self, latents_BCHW: torch.Tensor, timesteps_B: torch.Tensor, noise_BCHW: torch.Tensor, prompts: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(prompts)), torch.full_like(latents_BCHW, self.slope)


@pytest.fixture
def trainer(tiny_model_path: Path) -> GeneratorTrainer:
    config = RunSettings.model_validate(
        {
            "name": "generator",
            "model": {"path": str(tiny_model_path), "device": "cpu"},
            "prompts": {"train": "unused", "held_out": "unused"},
            "rewards": [{"name": "any"}],
            "lora": {"rank": 2},
        }
    )
    return GeneratorTrainer(load_model(config.model), config)


def values(trainer: GeneratorTrainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.parameters]


def test_a_fresh_adapter_is_the_base(trainer: GeneratorTrainer) -> None:
    """Guards against a regulariser that pulls an untouched generator somewhere: it must start at exactly zero."""
    assert trainer.step(PROMPTS, Slope(0.0)).regulariser == 0.0


def test_a_gradient_that_is_not_finite_is_not_applied(trainer: GeneratorTrainer) -> None:
    """Guards against NaN entering the optimiser: nothing may move, neither weights nor average nor count."""
    before = values(trainer)
    with pytest.raises(NonFiniteError, match="gradient norm nan"):
        trainer.step(PROMPTS, Slope(float("nan")))
    assert all(torch.equal(a, b) for a, b in zip(before, values(trainer), strict=True))
    assert trainer.version == 0
    assert not trainer.optimiser.state


def test_state_brings_back_the_very_next_update(trainer: GeneratorTrainer) -> None:
    """Guards against a checkpoint without the optimiser or the moments: the update after it must be the same."""
    trainer.step(PROMPTS, Slope(1.0))
    kept, version, moments = trainer.state(), trainer.version, list(trainer.moments)
    kept = {name: tensor.clone() for name, tensor in kept.items()}
    trainer.step(PROMPTS, Slope(1.0))
    expected = values(trainer)
    trainer.load_state(kept, version, moments)
    trainer.step(PROMPTS, Slope(1.0))
    assert all(torch.equal(a, b) for a, b in zip(expected, values(trainer), strict=True))
    assert any(tensor.abs().max() > 0 for tensor in trainer.average)
