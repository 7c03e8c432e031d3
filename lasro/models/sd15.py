"""SD1.5- and SD2.1-class few-step models: LCM-Dreamshaper, SD-Turbo and the like.

Shape legend: T tokens, D embedding.
"""

from __future__ import annotations

from typing import Any

from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import (
    LatentConsistencyModelPipeline,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor

from lasro.errors import ModelError
from lasro.models.conditioning import Conditioning
from lasro.models.unet_generator import UNetGenerator


class Sd15Generator(UNetGenerator):
    """One text encoder, and a UNet that takes nothing else; its safety checker is not loaded."""

    pipeline_class = StableDiffusionPipeline
    load_options = {"safety_checker": None, "requires_safety_checker": False}  # noqa: RUF012  (a ClassVar)
    tokenizers = ("tokenizer",)
    text_encoders = ("text_encoder",)

    def check_unet(self, config: Any) -> None:
        if config.addition_embed_type is not None:
            got = config.addition_embed_type
            raise ModelError(f"got addition_embed_type {got!r}, expected none as in SD1.5")

    def embed_prompt(self, prompt: str) -> dict[str, Tensor]:
        embeds_1TD, _ = self.pipeline.encode_prompt(
            prompt, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"embeds": embeds_1TD[0]}

    def prompt_arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        return {"encoder_hidden_states": conditioning["embeds"]}


class LatentConsistencyPipelineGenerator(Sd15Generator):
    """The same parts under the pipeline that LCM-Dreamshaper was published with."""

    pipeline_class = LatentConsistencyModelPipeline
