"""The surrogate's feature extractor for UNets: the down and mid blocks of the generator's own (LaSRO, stage 1).

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lasro.models.conditioning import Conditioning
from lasro.models.feature_extractor import FeatureExtractor
from lasro.models.shared_view import shared_view
from lasro.models.trained_parts import adapt_to_train, copy_to_train


class UNetEncoder(FeatureExtractor):
    """conv_in, down and mid blocks of a UNet with its embeddings: latents to the mid block's feature map.

    What `train_blocks` copies is the trunk's own and trainable; all else is shared with the frozen base.
    """

    trained_parts = ("conv_in", "down_blocks", "mid_block")

    def __init__(self, unet: nn.Module, arguments: Callable[[Conditioning], dict[str, Any]]) -> None:
        """`arguments` makes the UNet's keyword arguments of a conditioning."""
        super().__init__()
        self._arguments = arguments
        view: Any = shared_view(unet)
        view.up_blocks = nn.ModuleList()
        view.conv_norm_out, view.conv_out = nn.Identity(), nn.Identity()
        self.unet = view
        self.out_channels: int = view.config.block_out_channels[-1]

    def train_blocks(self) -> None:
        """Replace shared weights of conv_in, down and mid blocks by trainable float32 copies."""
        copy_to_train(self.unet, self.trained_parts)

    def add_adapters(self, rank: int) -> None:
        """LoRA adapters, float32, on every linear and convolution of conv_in, down and mid blocks."""
        adapt_to_train(self.unet, self.trained_parts, rank)

    def forward(self, x_t_BCHW: Tensor, timesteps_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Features [B, out_channels, H', W'] of the mid block, as UNet2DConditionModel.forward computes them."""
        unet: Any = self.unet
        arguments = self._arguments(conditioning)
        embedding = unet.get_time_embed(sample=x_t_BCHW, timestep=timesteps_B)
        embedding = unet.time_embedding(embedding, arguments.get("timestep_cond"))
        states = arguments["encoder_hidden_states"]
        added = unet.get_aug_embed(
            emb=embedding, encoder_hidden_states=states, added_cond_kwargs=arguments.get("added_cond_kwargs")
        )
        if added is not None:
            embedding = embedding + added
        hidden = unet.conv_in(x_t_BCHW)
        for block in unet.down_blocks:
            if getattr(block, "has_cross_attention", False):
                hidden, _ = block(hidden_states=hidden, temb=embedding, encoder_hidden_states=states)
            else:
                hidden, _ = block(hidden_states=hidden, temb=embedding)
        if unet.mid_block is None:  # as in UNets distilled without one; the last down block's features then
            return hidden
        if getattr(unet.mid_block, "has_cross_attention", False):
            return unet.mid_block(hidden, embedding, encoder_hidden_states=states)
        return unet.mid_block(hidden, embedding)
