"""What all generators over a stock pipeline share: its VAE, its tokenizers, and adapters that are found, then put on.

Shape legend: B batch, C latent channels, H, W latent height and width, h, w image height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lasro.models.adapter import Adapter, AdapterKeys, put_on
from lasro.models.base import GeneratorModel
from lasro.models.image_codec import ImageCodec
from lasro.models.prompt_tokens import PromptTokens


class PipelineGenerator(GeneratorModel):
    """A generator over a pipeline of diffusers; what its network is and how it is sampled is the family's."""

    pipeline: Any
    codec: ImageCodec
    _prompt_tokens: PromptTokens

    def check_prompts(self, prompts: Sequence[str]) -> None:
        self._prompt_tokens.check(prompts)

    # --- images ----------------------------------------------------------------------------------------------

    def decode_pixels(self, latents_BCHW: Tensor) -> Tensor:
        return self.codec.decode_pixels(latents_BCHW)

    def decode(self, latents_BCHW: Tensor, mixed: bool = False) -> np.ndarray:
        return self.codec.decode(latents_BCHW, mixed)

    def decode_to_score(self, latents_BCHW: Tensor) -> np.ndarray:
        return self.codec.decode_to_score(latents_BCHW)

    def encode(self, images_BhwC: np.ndarray) -> Tensor:
        return self.codec.encode(images_BhwC, self.image_size)

    def encode_any_size(self, images_BhwC: np.ndarray) -> Tensor:
        return self.codec.encode(images_BhwC)

    # --- adapters --------------------------------------------------------------------------------------------

    def load_lora(self, path: Path, partial: bool = False) -> AdapterKeys:
        adapter = self.find_lora(path, partial)
        self.put_lora(adapter)
        return adapter.keys

    def put_lora(self, adapter: Adapter) -> None:
        put_on(self.pipeline.components, adapter)
