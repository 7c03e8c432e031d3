"""The true gradient through the decoder, against numbers that autograd gives in one piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch_rewards import brightness, of_wrong_shape

from lasro.config import RunSettings
from lasro.errors import ConfigError, RewardError
from lasro.methods.registry import create_trainer
from lasro.methods.true_gradient import TrueGradient
from lasro.models.registry import load_model
from lasro.reward_function import load_reward
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.prompts import Prompt
from lasro.training.sampling import draw_noises, generator_for, sample_latents

BATCH = [Prompt("a red star"), Prompt("a blue square"), Prompt("a green ring")]


def settings(model: Path, reward: dict[str, Any] | None = None, **train: Any) -> RunSettings:
    return RunSettings.model_validate(
        {
            "name": "true",
            "model": {"path": str(model), "device": "cpu", "autocast": "none"},
            "prompts": {"train": "unused", "held_out": "unused"},
            "rewards": [{"name": "brightness", "serve": "torch_rewards:brightness", "weight": 2.0} | (reward or {})],
            "method": {"type": "true-gradient", "one_step_weight": 0.25, "regulariser_weight": 0.0},
            "lora": {"rank": 2},
            "train": {"learning_rate": 3e-3, "warmup_steps": 1, "clip_norm": 1e9} | train,
        }
    )


def trainer_of(model: Path, **train: Any) -> GeneratorTrainer:
    config = settings(model, **train)
    return create_trainer(config, load_model(config.model))


def mean_rewards(trainer: GeneratorTrainer, version: int) -> list[torch.Tensor]:
    """Of one step and two, on the noise of that update, by plain autograd through sampling and decoding."""
    model, draws = trainer.model, generator_for(trainer.seed, "generator", version)
    conditioning = model.embed([prompt.text for prompt in BATCH])
    latents = sample_latents(model, draw_noises(model, len(BATCH), draws), conditioning)
    return [2 * model.decode_pixels(z).clamp(0, 1).mean() for z in latents]


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_the_update_has_the_gradient_of_the_reward(tiny_model_path: Path, micro_batch_size: int | None) -> None:
    """Guards against a sign, a weight or a mean that is off: L = -0.25 mean r(z1) - 0.5 mean r(z2), by autograd."""
    trainer = trainer_of(tiny_model_path, micro_batch_size=micro_batch_size)
    with torch.no_grad():  # away from the start, where half of a LoRA has no gradient
        for parameter in trainer.parameters:
            parameter.add_(0.02)
    one_step, two_steps = mean_rewards(trainer, 0)
    loss = -0.25 * one_step - 0.5 * two_steps
    expected = torch.autograd.grad(loss, trainer.parameters)
    statistics = trainer.step(BATCH, None)
    assert statistics.loss == pytest.approx(loss.item(), rel=1e-5)
    assert (statistics.scores[1], statistics.scores[2]) == pytest.approx((one_step.item(), two_steps.item()), rel=1e-5)
    for parameter, gradient in zip(trainer.parameters, expected, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, atol=1e-5 * max(1.0, gradient.abs().max().item()))


def test_updates_make_images_brighter(tiny_model_path: Path) -> None:
    """Guards against an upper limit that descends, or that trains nothing."""
    trainer = trainer_of(tiny_model_path)
    before = [value.item() for value in mean_rewards(trainer, 1000)]
    for _ in range(12):
        trainer.step(BATCH, None)
    after = [value.item() for value in mean_rewards(trainer, 1000)]
    assert all(new > old + 0.01 for new, old in zip(after, before, strict=True))
    assert not TrueGradient.needs_surrogate


def test_a_torch_reward_is_served_like_any_other() -> None:
    """Guards against two functions, of which one is trained on and the other one measured."""
    assert load_reward("torch_rewards:brightness") is brightness
    images = [Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (8, 2), (255, 255, 255))]
    assert brightness(images, ["a", "b"]) == pytest.approx([1 / 3, 1.0])
    pixels_BCHW = torch.rand(2, 3, 4, 4)
    assert torch.equal(brightness.differentiable(pixels_BCHW, ["a", "b"], [None] * 2), pixels_BCHW.mean((1, 2, 3)))
    with pytest.raises(RewardError, match=r"of_wrong_shape: returned \[\], expected a tensor \[2\]"):
        of_wrong_shape.differentiable(pixels_BCHW, ["a", "b"], [None] * 2)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({"serve": "lasro_rewards.jpeg:compressibility"}, "has no gradient"),
        ({"serve": None}, "expected serve"),
        ({"floor": 0.5}, "without floor and normalise"),
    ],
)
def test_a_reward_without_a_gradient_is_refused(tiny_model_path: Path, reward: dict[str, Any], message: str) -> None:
    """Guards against a run that ascends something else than its reward, or fails after its first evaluation."""
    config = settings(tiny_model_path, reward)
    with pytest.raises(ConfigError, match=message):
        create_trainer(config, load_model(config.model))
