"""The surrogate's feature extractor for transformers: the first half of the generator's own blocks.

Shape legend: B batch, C latent channels, H, W latent height and width, N tokens, D width of the transformer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from lasro.models.conditioning import Conditioning
from lasro.models.feature_extractor import FeatureExtractor
from lasro.models.trained_parts import adapt_to_train, copy_to_train

Run = Callable[[Any, Tensor, Tensor, Conditioning], Tensor]
"""Network, x_t [B, C, H, W], timesteps [B] int64 and conditioning to features [B, D, H', W']."""


class Passthrough(nn.Module):
    """In the place of a last layer: the tokens as they are, whatever else that layer takes."""

    def forward(self, tokens_BND: Tensor, *_: Any, **__: Any) -> Tensor:
        return tokens_BND


def first_half(*stacks: nn.ModuleList) -> list[nn.ModuleList]:
    """The first half of all blocks, in their order; of an odd number the larger one. A stack may come out empty."""
    left, kept = -(-sum(len(stack) for stack in stacks) // 2), []
    for stack in stacks:
        kept.append(stack[:left])
        left -= len(kept[-1])
    return kept


class TransformerTrunk(FeatureExtractor):
    """A transformer that was cut after its first half, with its tokens put back on the grid of the latents.

    What `train_blocks` copies is the trunk's own and trainable; all else is shared with the frozen base.
    """

    def __init__(self, network: nn.Module, trained_parts: Sequence[str], run: Run, out_channels: int) -> None:
        """`network`: a view of the base of its own; `run` calls it."""
        super().__init__()
        self.network, self.trained_parts, self._run = network, tuple(trained_parts), run
        self.out_channels = out_channels

    def train_blocks(self) -> None:
        copy_to_train(self.network, self.trained_parts)

    def add_adapters(self, rank: int) -> None:
        adapt_to_train(self.network, self.trained_parts, rank)

    def forward(self, x_t_BCHW: Tensor, timesteps_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Features [B, D, H', W'] after the first half of the blocks."""
        return self._run(self.network, x_t_BCHW, timesteps_B, conditioning)
