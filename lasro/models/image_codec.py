"""Latents to images and back, by a pipeline's VAE as the settings ask for it, or by a tiny one in its place.

Shape legend: B batch, C channels, H, W latent height and width, h, w image height and width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lasro.config import ModelSettings
from lasro.errors import WireError
from lasro.models.latent_codec import LatentCodec
from lasro.models.vae_settings import load_tiny_vae, switch

BATCH = 4  # larger ones are slower on a CPU, and at 1024 x 1024 need gigabytes each


def uint8_images(pixels_BChw: Tensor) -> np.ndarray:
    """Images uint8 [B, h, w, 3] of pixels from 0 to 1; others are clamped."""
    return (pixels_BChw.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


class ImageCodec:
    """As `GeneratorModel` says of images."""

    def __init__(
        self,
        vae: Any,
        settings: ModelSettings,
        device: torch.device,
        normalises: bool = False,
        kind: type[LatentCodec] = LatentCodec,
    ) -> None:
        """Of a VAE that goes with this `kind`; `normalises` is that of `LatentCodec`. Raises ModelError for what of the
        settings this VAE cannot do."""
        batch = min(BATCH, settings.max_batch or BATCH)
        switch(vae, settings)
        self.true = self.to_score = kind(vae, f"model.path {settings.path}: vae", batch, normalises)
        tiny = load_tiny_vae(settings, vae, device)
        if tiny is not None:
            self.to_score = LatentCodec(tiny, "model.tiny_vae", batch, False)
        self._autocast = settings.autocast

    def decode_pixels(self, latents_BCHW: Tensor) -> Tensor:
        """Float32 [B, 3, h, w], 0 to 1 and with a gradient, but not clamped."""
        return self.true.decode(latents_BCHW) / 2 + 0.5

    def decode(self, latents_BCHW: Tensor, mixed: bool = False) -> np.ndarray:
        """Uint8 [B, h, w, 3]; with `mixed` in the settings' autocast dtype, else as the weights are."""
        return self._decoded(self.true, latents_BCHW, mixed)

    def decode_to_score(self, latents_BCHW: Tensor) -> np.ndarray:
        """`decode` with `mixed` by the tiny VAE, where there is one."""
        return self._decoded(self.to_score, latents_BCHW, mixed=True)

    @torch.no_grad()
    def _decoded(self, codec: LatentCodec, latents_BCHW: Tensor, mixed: bool) -> np.ndarray:
        return uint8_images(codec.decode(latents_BCHW, self._autocast if mixed else "none") / 2 + 0.5)

    @torch.no_grad()
    def encode(self, images_BhwC: np.ndarray, size: tuple[int, int] | None = None) -> Tensor:
        """Latents float32 [B, C, H, W] of uint8 images; raises WireError for others than of `size`, h and w, if any."""
        if size is not None and images_BhwC.shape[1:] != (expected := (*size, 3)):
            raise WireError(f"images: got {images_BhwC.shape[1:]}, expected {expected}")
        return self.true.encode(images_BhwC)
