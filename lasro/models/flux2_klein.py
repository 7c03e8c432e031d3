"""FLUX.2-klein (Flux2KleinPipeline), step-distilled: flow matching on patches of 2 x 2 latents, made for 4 steps.

Latents are the normalised patches that the network sees: 4 C channels at half the VAE's height and width.

Shape legend: B batch, C latent channels, H, W latent height and width, T tokens of a prompt, E embedding, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline, compute_empirical_mu
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from lasro.config import ModelSettings
from lasro.errors import ModelError
from lasro.models.conditioning import Conditioning
from lasro.models.flow_generator import TRAIN_TIMESTEPS, FlowGenerator
from lasro.models.rendered_prompts import RenderedPrompts, chat
from lasro.models.transformer_codecs import PATCH, PatchedCodec
from lasro.models.transformer_generator import Parts
from lasro.models.transformer_trunk import Passthrough, first_half

MAX_TOKENS = 512
ENCODER_LAYERS = (9, 18, 27)
"""Of the text encoder, whose outputs the stock pipeline joins."""


class Flux2KleinGenerator(FlowGenerator):
    """Sampled without classifier-free guidance, as the stock pipeline samples a distilled model."""

    pipeline_class = Flux2KleinPipeline
    parts = Parts(Flux2Transformer2DModel, AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, PatchedCodec)

    def __init__(self, pipeline: Any, settings: ModelSettings) -> None:
        super().__init__(pipeline, settings)
        singles = range(len(self.base.single_transformer_blocks))
        self.lora_targets = (
            "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
            "ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out", "to_qkv_mlp_proj",
            *(f"single_transformer_blocks.{i}.attn.to_out" for i in singles),  # as an ending it means lists of layers
        )  # fmt: skip

    @classmethod
    def rendered_prompts(cls, tokenizer: Any) -> RenderedPrompts:
        return RenderedPrompts(tokenizer, chat(tokenizer, enable_thinking=False), MAX_TOKENS)

    def check_parts(self) -> None:
        super().check_parts()
        if not self.pipeline.config.is_distilled:
            raise ModelError("model_index.json: got is_distilled false; it is a FLUX.2-klein of many steps")
        config, encoder = self.pipeline.transformer.config, self.pipeline.text_encoder.config
        if encoder.num_hidden_layers < ENCODER_LAYERS[-1]:
            got = encoder.num_hidden_layers
            raise ModelError(f"text_encoder: got {got} layers, expected at least {ENCODER_LAYERS[-1]}")
        self.check_sizes(
            ("in_channels", config.in_channels, self.pipeline.vae.config.latent_channels * PATCH**2),
            ("patch_size", config.patch_size, 1),
            ("joint_attention_dim", config.joint_attention_dim, encoder.hidden_size * len(ENCODER_LAYERS)),
        )

    def shapes(self) -> tuple[tuple[int, int, int], tuple[int, int]]:
        scale = self.pipeline.vae_scale_factor * PATCH
        height, width = self.size(scale)
        return (self.pipeline.transformer.config.in_channels, height // scale, width // scale), (height, width)

    def embed_prompt(self, prompt: str) -> dict[str, Tensor]:
        embeds_1TE, _ = self.pipeline.encode_prompt(
            prompt, device=self.device, max_sequence_length=MAX_TOKENS, text_encoder_out_layers=ENCODER_LAYERS
        )
        return {"embeds": embeds_1TE[0]}

    def shift(self, num_steps: int) -> float:
        _, height, width = self.latent_shape
        return compute_empirical_mu(height * width, num_steps)

    def run(self, network: Any, x_t_BCHW: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = self.input_dtype()
        embeds_BTE, (height, width) = conditioning["embeds"].to(dtype), x_t_BCHW.shape[2:]
        tokens_BND = network(
            hidden_states=x_t_BCHW.flatten(2).transpose(1, 2).to(dtype),
            timestep=time_B * TRAIN_TIMESTEPS / TRAIN_TIMESTEPS,  # stock rounds like that
            encoder_hidden_states=embeds_BTE,
            txt_ids=self._places(1, 1, embeds_BTE.shape[1]),
            img_ids=self._places(height, width, 1),
            return_dict=False,
        )[0]
        return tokens_BND.transpose(1, 2).unflatten(2, (height, width))

    def _places(self, height: int, width: int, length: int) -> Tensor:
        """Time, row, column and position in the prompt of each token, int64 [N, 4]."""
        axes = [torch.arange(size, device=self.device) for size in (1, height, width, length)]
        return torch.cartesian_prod(*axes)

    def cut(self, network: Any) -> tuple[Sequence[str], int]:
        stacks = first_half(network.transformer_blocks, network.single_transformer_blocks)
        network.transformer_blocks, network.single_transformer_blocks = stacks
        network.norm_out, network.proj_out = Passthrough(), nn.Identity()
        parts = ("x_embedder", "transformer_blocks", "single_transformer_blocks")
        return parts, network.config.num_attention_heads * network.config.attention_head_dim
