"""Rewards with a gradient to test with, served as `torch_rewards:NAME`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lasro.torch_reward import torch_reward


@torch_reward
def brightness(images_BCHW: Tensor, prompts: list[str], metadata: list[Any]) -> Tensor:
    return images_BCHW.mean((1, 2, 3))


@torch_reward
def of_wrong_shape(images_BCHW: Tensor, prompts: list[str], metadata: list[Any]) -> Tensor:
    return images_BCHW.mean()
