"""Rounds of a method that learns from rewards, without services: samples are drawn as a run does, and scored here.

Shape legend: B samples, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lasro.config import TrainSettings
from lasro.models.base import GeneratorModel
from lasro.training.generator_trainer import GeneratorTrainer, StepStatistics
from lasro.training.prompts import Prompt
from lasro.training.rewarded_group import RewardedGroup
from lasro.training.sampling import draw_group_noises, draw_noises, generator_for, sample_latents

Reward = Callable[[Tensor], Tensor]
"""Of latents [B, C, H, W], [B]."""
PROMPTS = [Prompt("a red star"), Prompt("a blue square"), Prompt("a green ring"), Prompt("a pink heart")]


def linear_reward(model: GeneratorModel, channel: int = 0) -> Reward:
    """The mean of a channel: what a brightness or redness is, where the decoder is linear."""
    return lambda z_BCHW: z_BCHW[:, channel].mean((1, 2)) * model.latent_shape[1]


@torch.no_grad()
def rewarded_groups(
    trainer: GeneratorTrainer,
    reward: Reward,
    round: int = 0,
    prompts: Sequence[Prompt] = PROMPTS,
    num_steps: int = 2,
) -> list[RewardedGroup]:
    """A group for each prompt, of own samples and, once there was an update, of the base's too."""
    model, settings, found = trainer.model, trainer.settings, []
    for index, prompt in enumerate(prompts):
        draws = generator_for(trainer.seed, "train", round, index)
        noises = draw_group_noises(model, settings.seeds_per_prompt, settings.second_step_draws, draws)
        noises += [torch.randn(noises[-1].shape, generator=draws) for _ in range(num_steps - len(noises))]
        own, base = (_totals(model, settings, prompt, noises, reward, of_base) for of_base in (False, True))
        found.append(RewardedGroup(prompt, noises, own, {} if trainer.is_base else base))
    return found


def _totals(
    model: GeneratorModel, settings: TrainSettings, prompt: Prompt, noises: list[Tensor], reward: Reward, base: bool
) -> dict[int, Tensor]:
    conditioning = model.embed([prompt.text]).repeat_each(settings.seeds_per_prompt)
    latents = sample_latents(model, noises, conditioning, base)
    return {num_steps: reward(z_BCHW).double().cpu() for num_steps, z_BCHW in enumerate(latents, 1)}


def train_rounds(trainer: GeneratorTrainer, reward: Reward, rounds: int, num_steps: int = 2) -> list[StepStatistics]:
    """As many rounds, each with `train.generator_steps` updates; what the updates said."""
    found = []
    for round in range(rounds):
        if trainer.observe(rewarded_groups(trainer, reward, round, num_steps=num_steps)):
            found += [trainer.step(PROMPTS, None) for _ in range(trainer.settings.generator_steps)]
    return found


@torch.no_grad()
def gain(trainer: GeneratorTrainer, reward: Reward, count: int = 64, num_steps: int = 2) -> tuple[float, float]:
    """Mean of own reward - base's of the same unseen noise at the last step, and its standard error."""
    model, draws = trainer.model, generator_for("gain")
    noises = draw_noises(model, count, draws, num_steps)
    conditioning = model.embed([PROMPTS[i % len(PROMPTS)].text for i in range(count)])
    own, base = (sample_latents(model, noises, conditioning, base=of_base)[-1] for of_base in (False, True))
    change_B = (reward(own) - reward(base)).double()
    return change_B.mean().item(), (change_B.std() / count**0.5).item()
