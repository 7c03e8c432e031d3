"""SDXL-class few-step models: LCM-SSD-1B, SDXL-Turbo, SDXL-Lightning, DMD2 and the like (StableDiffusionXLPipeline).

Shape legend: B batch, T tokens, D embedding, P pooled.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import Tensor

from lasro.errors import ModelError
from lasro.models.conditioning import Conditioning
from lasro.models.unet_generator import UNetGenerator

TIME_IDS = 6


class SdxlGenerator(UNetGenerator):
    """Two text encoders, and a UNet that is also told the image's size before and after it was scaled and cropped."""

    pipeline_class = StableDiffusionXLPipeline
    load_options = {"add_watermarker": False}  # noqa: RUF012  (a ClassVar by its declaration)
    tokenizers = ("tokenizer", "tokenizer_2")
    text_encoders = ("text_encoder", "text_encoder_2")
    normalises = True
    takes_micro_conditioning = True

    def check_unet(self, config: Any) -> None:
        if config.addition_embed_type != "text_time":
            got = config.addition_embed_type
            raise ModelError(f"got addition_embed_type {got!r}, expected 'text_time' as in SDXL")
        pooled, got = self.pipeline.text_encoder_2.config.projection_dim, config.projection_class_embeddings_input_dim
        if got != (expected := pooled + TIME_IDS * config.addition_time_embed_dim):
            raise ModelError(
                f"got projection_class_embeddings_input_dim {got}, expected {expected}: its time ids, and "
                f"projection_dim {pooled} of text_encoder_2"
            )

    def embed_prompt(self, prompt: str) -> dict[str, Tensor]:
        embeds_1TD, _, pooled_1P, _ = self.pipeline.encode_prompt(
            prompt, device=self.device, do_classifier_free_guidance=False
        )
        return {"embeds": embeds_1TD[0], "pooled": pooled_1P[0]}

    def prompt_arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        embeds_BTD, pooled_BP = conditioning["embeds"], conditioning["pooled"]
        settings, drawn = self.settings, self.image_size
        sizes = (*(settings.original_size or drawn), *(settings.crops_top_left or (0, 0)))
        time_ids = torch.tensor([*sizes, *(settings.target_size or drawn)], device=self.device, dtype=embeds_BTD.dtype)
        added = {"text_embeds": pooled_BP, "time_ids": time_ids.expand(len(pooled_BP), TIME_IDS)}
        return {"encoder_hidden_states": embeds_BTD, "added_cond_kwargs": added}
