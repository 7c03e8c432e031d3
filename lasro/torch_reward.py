"""Rewards that are torch functions: served like any other, and differentiable for `method.type = "true-gradient"`.

    from lasro.torch_reward import torch_reward

    @torch_reward
    def brightness(images_BCHW, prompts, metadata):
        return images_BCHW.mean((1, 2, 3))

Shape legend: B images, C = 3 channels, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lasro.errors import RewardError
from lasro.reward_function import Reward

TorchFunction = Callable[[Tensor, list[str], list[Any]], Tensor]


class TorchReward(Reward):
    """A reward whose function takes images float32 [B, 3, H, W], 0 to 1, and gives rewards [B] with a gradient."""

    def __init__(self, function: TorchFunction) -> None:
        self._differentiable = function
        super().__init__(_of_images(function))

    def differentiable(self, images_BCHW: Tensor, prompts: list[str], metadata: list[Any]) -> Tensor:
        """Rewards float32 [B] of images on any device; raises RewardError for another shape."""
        rewards_B = self._differentiable(images_BCHW, prompts, metadata)
        if not isinstance(rewards_B, Tensor) or rewards_B.shape != (len(prompts),):
            got = list(rewards_B.shape) if isinstance(rewards_B, Tensor) else type(rewards_B).__name__
            raise RewardError(f"{self.name}: returned {got}, expected a tensor [{len(prompts)}]")
        return rewards_B.float()


def torch_reward(function: TorchFunction) -> TorchReward:
    """Declare `function(images_BCHW, prompts, metadata) -> tensor [B]` as a reward that has a gradient."""
    return TorchReward(function)


def _of_images(function: TorchFunction) -> Callable[[list[Image.Image], list[str], list[Any]], Sequence[float]]:
    @wraps(function)
    @torch.no_grad()
    def rewards(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> Sequence[float]:
        found = []
        for image, prompt, entry in zip(images, prompts, metadata, strict=True):  # sizes may differ
            pixels_HWC = torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32)) / 255
            found.append(function(pixels_HWC.permute(2, 0, 1)[None], [prompt], [entry])[0].item())
        return found

    return rewards
