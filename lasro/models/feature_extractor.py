"""The part of a generator's network that the surrogate stands on."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lasro.models.conditioning import Conditioning


class FeatureExtractor(nn.Module, ABC):
    """The part of a generator's network that the surrogate stands on, over the frozen weights of the base.

    What `train_blocks` or `add_adapters` makes trainable is its own.
    """

    out_channels: int
    """C' of the feature map."""

    @abstractmethod
    def train_blocks(self) -> None:
        """Replace the shared weights by trainable float32 copies."""

    @abstractmethod
    def add_adapters(self, rank: int) -> None:
        """Leave the shared weights frozen and put trainable float32 LoRA adapters on them."""

    @abstractmethod
    def forward(self, x_t_BCHW: Tensor, timesteps_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Features [B, C', H', W'] of noisy latents at `timesteps_B` int64, 0 to 999."""
