"""Z-Image-Turbo (ZImagePipeline): flow matching by a single-stream transformer, made for 8 steps.

Shape legend: B batch, C latent channels, H, W latent height and width, T tokens of a prompt, E embedding, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline, calculate_shift
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from torch.nn.functional import pad, pixel_unshuffle

from lasro.errors import ModelError
from lasro.models.conditioning import Conditioning
from lasro.models.flow_generator import TRAIN_TIMESTEPS, FlowGenerator
from lasro.models.rendered_prompts import RenderedPrompts, chat
from lasro.models.transformer_codecs import ShiftedCodec
from lasro.models.transformer_generator import Parts
from lasro.models.transformer_trunk import Passthrough, first_half

MAX_TOKENS = 512
PATCH, PATCHING = 2, "2-1"
"""Side of a patch in latents, and what the network calls it."""


class ZImageGenerator(FlowGenerator):
    """Sampled without classifier-free guidance, as the stock pipeline with `guidance_scale = 0`."""

    pipeline_class = ZImagePipeline
    parts = Parts(ZImageTransformer2DModel, AutoencoderKL, FlowMatchEulerDiscreteScheduler, ShiftedCodec)
    lora_targets = (
        "to_q", "to_k", "to_v", "to_out.0", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3",
    )  # fmt: skip

    @classmethod
    def rendered_prompts(cls, tokenizer: Any) -> RenderedPrompts:
        return RenderedPrompts(tokenizer, chat(tokenizer, enable_thinking=True), MAX_TOKENS)

    def check_parts(self) -> None:
        super().check_parts()
        config = self.pipeline.transformer.config
        self.check_sizes(
            ("in_channels", config.in_channels, self.pipeline.vae.config.latent_channels),
            ("cap_feat_dim", config.cap_feat_dim, self.pipeline.text_encoder.config.hidden_size),
        )
        if PATCHING not in self.pipeline.transformer.all_x_embedder:
            raise ModelError(f"transformer: got all_patch_size {list(config.all_patch_size)}, expected {PATCH} in it")

    def shapes(self) -> tuple[tuple[int, int, int], tuple[int, int]]:
        scale = self.pipeline.vae_scale_factor
        height, width = self.size(scale * PATCH)
        return (self.pipeline.transformer.in_channels, height // scale, width // scale), (height, width)

    def embed_prompt(self, prompt: str) -> dict[str, Tensor]:
        (embeds_TE,), _ = self.pipeline.encode_prompt(
            prompt, device=self.device, do_classifier_free_guidance=False, max_sequence_length=MAX_TOKENS
        )
        missing = MAX_TOKENS - len(embeds_TE)
        mask_T = torch.ones(len(embeds_TE), device=self.device, dtype=torch.int64)
        return {"embeds": pad(embeds_TE, (0, 0, 0, missing)), "mask": pad(mask_T, (0, missing))}

    def shift(self, num_steps: int) -> float:
        _, height, width = self.latent_shape
        config = self.pipeline.scheduler.config
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        given = {name.replace("image_seq", "seq"): config[name] for name in names}
        return calculate_shift((height // PATCH) * (width // PATCH), **given)

    def run(self, network: Any, x_t_BCHW: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = self.input_dtype()
        prompts = zip(conditioning["embeds"].to(dtype), conditioning["mask"].bool(), strict=True)
        outputs = network(
            list(x_t_BCHW.to(dtype).unsqueeze(2).unbind()),
            (TRAIN_TIMESTEPS - time_B * TRAIN_TIMESTEPS) / TRAIN_TIMESTEPS,
            [embeds_TE[mask_T] for embeds_TE, mask_T in prompts],
            patch_size=PATCH,
            return_dict=False,
        )[0]
        return -torch.stack(outputs).squeeze(2)

    def cut(self, network: Any) -> tuple[Sequence[str], int]:
        (network.layers,) = first_half(network.layers)
        network.all_final_layer[PATCHING] = Passthrough()
        network.out_channels = network.dim // PATCH**2  # its unpatchify then puts all of a token on its patch
        return ("all_x_embedder", "noise_refiner", "layers"), network.dim

    def features(self, network: Any, x_t_BCHW: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        return pixel_unshuffle(-self.run(network, x_t_BCHW, time_B, conditioning), PATCH)
