"""SANA-Sprint (SanaSprintPipeline): a consistency model of TrigFlow with a linear transformer, in 1 to 4 steps.

A sampler's time is TrigFlow's angle in radians, 0 (clean) to a little over pi / 2 (noise).

Shape legend: B batch, C latent channels, H, W latent height and width, T tokens, E embedding.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.pipelines.sana.pipeline_sana_sprint import SanaSprintPipeline
from diffusers.schedulers.scheduling_scm import SCMScheduler
from torch import Tensor, nn

from lasro.errors import ModelError
from lasro.functional.trigflow import (
    add_trigflow_noise,
    clean_from_trigflow,
    flow_input,
    flow_level,
    trigflow_output,
)
from lasro.models.conditioning import Conditioning, SamplingStep
from lasro.models.rendered_prompts import RenderedPrompts
from lasro.models.transformer_codecs import DeepCompressionCodec
from lasro.models.transformer_generator import Parts, TransformerGenerator
from lasro.models.transformer_trunk import Passthrough, first_half
from lasro.models.unet_checks import image_size

STOCK = inspect.signature(SanaSprintPipeline.__call__).parameters
INSTRUCTION: list[str] = STOCK["complex_human_instruction"].default
"""What the stock pipeline puts before each prompt, line by line."""
MAX_TOKENS: int = STOCK["max_sequence_length"].default
LAST_TIMESTEP = 999


class SanaSprintGenerator(TransformerGenerator):
    """Guidance is embedded, as the stock pipeline's `guidance_scale`."""

    pipeline_class = SanaSprintPipeline
    parts = Parts(SanaTransformer2DModel, AutoencoderDC, SCMScheduler, DeepCompressionCodec)
    has_guidance = True
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "conv_inverted", "conv_point")

    @classmethod
    def rendered_prompts(cls, tokenizer: Any) -> RenderedPrompts:
        before = "\n".join(INSTRUCTION)
        uncounted = len(tokenizer.encode(before)) - 2  # as the stock pipeline counts
        return RenderedPrompts(tokenizer, lambda prompt: before + prompt.lower().strip(), MAX_TOKENS, uncounted)

    def check_parts(self) -> None:
        config, encoder = self.pipeline.transformer.config, self.pipeline.text_encoder.config
        if not config.guidance_embeds:
            raise ModelError("transformer: got no guidance_embeds, which a SANA-Sprint has; it is a SANA of many steps")
        for name, got, expected in (
            ("in_channels", config.in_channels, self.pipeline.vae.config.latent_channels),
            ("out_channels", config.out_channels, config.in_channels),
            ("caption_channels", config.caption_channels, encoder.hidden_size),
        ):
            if got != expected:
                raise ModelError(f"transformer: got {name} {got}, expected {expected} for its VAE and text encoder")
        if (kind := self.pipeline.scheduler.config.prediction_type) != "trigflow":
            raise ModelError(f"scheduler: got prediction_type {kind!r}, expected 'trigflow'")

    def shapes(self) -> tuple[tuple[int, int, int], tuple[int, int]]:
        config, scale = self.pipeline.transformer.config, self.pipeline.vae_scale_factor
        height, width = image_size(config, scale, self.settings)
        return (config.in_channels, height // scale, width // scale), (height, width)

    def embed_prompt(self, prompt: str) -> dict[str, Tensor]:
        embeds_1TE, mask_1T = self.pipeline.encode_prompt(
            prompt, device=self.device, max_sequence_length=MAX_TOKENS, complex_human_instruction=INSTRUCTION
        )
        return {"embeds": embeds_1TE[0], "mask": mask_1T[0]}

    # --- sampling --------------------------------------------------------------------------------------------

    def steps(self, num_steps: int) -> tuple[SamplingStep, ...]:
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        middle = STOCK["intermediate_timesteps"].default if num_steps == 2 else None  # stock refuses it for others
        scheduler.set_timesteps(num_steps, max_timesteps=STOCK["max_timesteps"].default, intermediate_timesteps=middle)
        return tuple(SamplingStep(index, time) for index, time in enumerate(scheduler.timesteps[:-1].tolist()))

    def clean(self, output_BCHW: Tensor, x_t_BCHW: Tensor, time: Tensor) -> Tensor:
        sigma = flow_level(time)
        F_BCHW = trigflow_output(output_BCHW, flow_input(x_t_BCHW, sigma), sigma)
        return clean_from_trigflow(F_BCHW, x_t_BCHW, time)

    def next_input(
        self, x_t_BCHW: Tensor, z_BCHW: Tensor, noise_BCHW: Tensor, step: SamplingStep, next_step: SamplingStep
    ) -> Tensor:
        return add_trigflow_noise(z_BCHW, noise_BCHW, torch.tensor(next_step.time, device=z_BCHW.device))

    def diffuse(self, z_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        return add_trigflow_noise(z_BCHW, noise_BCHW, self.time_of(timesteps_B).reshape(-1, 1, 1, 1))

    def time_of(self, timesteps_B: Tensor) -> Tensor:
        return timesteps_B.float() / LAST_TIMESTEP * (math.pi / 2)

    # --- the network -----------------------------------------------------------------------------------------

    def run(self, network: Any, x_t_BCHW: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        sigma_B, dtype = flow_level(time_B), self.input_dtype()
        embeds_BTE = conditioning["embeds"].to(dtype)
        w_B = torch.full((len(time_B),), self.settings.guidance, device=self.device, dtype=dtype)
        return network(
            flow_input(x_t_BCHW, sigma_B.reshape(-1, 1, 1, 1)).to(dtype),
            encoder_hidden_states=embeds_BTE,
            encoder_attention_mask=conditioning["mask"],
            guidance=w_B * network.config.guidance_embeds_scale,
            timestep=sigma_B,
            return_dict=False,
        )[0]

    def cut(self, network: Any) -> tuple[Sequence[str], int]:
        (network.transformer_blocks,) = first_half(network.transformer_blocks)
        network.norm_out, network.proj_out = Passthrough(), nn.Identity()
        width = network.config.num_attention_heads * network.config.attention_head_dim
        return ("patch_embed", "transformer_blocks"), width // network.config.patch_size**2
