"""What is looked at behind a generator: its latents, the image, and rewards of the image.

Rewards are asked through the reward API as always, of 8-bit PNGs, or computed here where they are torch functions, of
pixels that are not rounded.

Shape legend: B samples of one prompt, C, H, W latent, h, w image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lasro.images import png_bytes
from lasro.methods.true_gradient import torch_reward_of
from lasro.models.base import GeneratorModel
from lasro.models.image_codec import uint8_images
from lasro.torch_reward import TorchReward
from lasro.training.prompts import Prompt
from lasro.wire import scores_of
from lasro_client.evaluation.compare_to_base import reward_to_serve
from lasro_client.evaluation.score_prompts import score_images
from lasro_client.services.reward_client import RewardClient

Rewards = Mapping[str, Tensor]
"""By name float64 [B], NaN where a reward could not score."""


class RewardSource(Protocol):
    """Scores images of one prompt."""

    @property
    def names(self) -> Sequence[str]: ...

    def __call__(self, pixels_BChw: Tensor, prompt: Prompt) -> Rewards: ...


class ServedRewards:
    """Those that a reward API knows, whatever they are."""

    def __init__(self, client: RewardClient, names: Sequence[str]) -> None:
        self.client, self.names = client, names

    def __call__(self, pixels_BChw: Tensor, prompt: Prompt) -> Rewards:
        pngs = [png_bytes(image) for image in uint8_images(pixels_BChw)]
        items = score_images(self.client, [prompt] * len(pngs), pngs, self.names)
        return {name: _with_nan(scores_of(items, name)) for name in self.names}


class TorchRewards:
    """Torch functions, by name; none at all, too. A gradient flows from the pixels on."""

    def __init__(self, rewards: Mapping[str, TorchReward]) -> None:
        self.rewards, self.names = rewards, list(rewards)

    def __call__(self, pixels_BChw: Tensor, prompt: Prompt) -> Rewards:
        given = pixels_BChw, [prompt.text] * len(pixels_BChw), [prompt.metadata] * len(pixels_BChw)
        return {name: reward.differentiable(*given).double() for name, reward in self.rewards.items()}


def torch_rewards(rewards: Sequence[str]) -> dict[str, TorchReward]:
    """Those of NAME=module:function by name; raises ConfigError for one that has no gradient."""
    found = [reward_to_serve(reward) for reward in rewards]
    return {each.name: torch_reward_of(each) for each in found}


def pixels(model: GeneratorModel, z_BCHW: Tensor) -> Tensor:
    """Images float32 [B, 3, h, w], 0 to 1, not rounded; with a gradient."""
    return model.decode_pixels(z_BCHW).clamp(0, 1)


def _with_nan(scores: Sequence[float | None]) -> Tensor:
    return torch.tensor([torch.nan if score is None else score for score in scores], dtype=torch.float64)
