"""Latents to images and back by a VAE, in the precision that it needs and scaled as stock diffusers does.

Shape legend: B batch, C latent channels, H, W latent height and width, h, w image height and width.
"""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lasro.errors import ModelError, NonFiniteError, WireError
from lasro.models.device import autocast, device_memory
from lasro.validation import one_line

MEMORY_ADVICE = 'lower model.max_batch, or set model.dtype = "bfloat16"'


class LatentCodec:
    """A pipeline's VAE. One with `force_upcast` overflows in float16, so it never computes in it, whatever is asked.

    A `shift_factor` is not applied: stock pipelines of these families leave it out too.
    """

    def __init__(self, vae: Any, where: str, batch: int, normalises: bool) -> None:
        """`batch`: images that go through the VAE together; `normalises`: whether stock applies `latents_mean`.

        Raises ModelError, beginning with `where`, for a configuration by which latents cannot be scaled.
        """
        self.batch = batch
        self._forced: bool = bool(vae.config.get("force_upcast"))
        if self._forced and vae.dtype == torch.float16:
            vae.to(torch.float32)
        self.vae, self.device = vae, vae.device
        self._read_scaling(where, normalises)

    def _read_scaling(self, where: str, normalises: bool) -> None:
        self._scale: float = self.vae.config.scaling_factor
        if not isinstance(self._scale, int | float) or not 0 < self._scale < float("inf"):
            raise ModelError(f"{where}: got scaling_factor {one_line(repr(self._scale))}, expected a number above 0")
        self._statistics = self._mean_and_std(where) if normalises else None

    def _mean_and_std(self, where: str) -> tuple[Tensor, Tensor] | None:
        found = [self.vae.config.get(name) for name in ("latents_mean", "latents_std")]
        if None in found:  # stock takes both or neither
            return None
        channels = self.vae.config.latent_channels
        try:
            mean, std = (torch.tensor(values, device=self.device).reshape(1, channels, 1, 1) for values in found)
        except (TypeError, ValueError, RuntimeError) as error:
            got = one_line(repr(found))
            raise ModelError(
                f"{where}: got latents_mean, latents_std {got}, expected {channels} numbers each"
            ) from error
        return mean, std

    def decode(self, latents_BCHW: Tensor, dtype: str = "none") -> Tensor:
        """Images float32 [B, 3, h, w], -1 to 1 but not clamped, with a gradient; `dtype`: autocast.

        Raises NonFiniteError before NaN becomes a black image, which a reward would score like any other.
        """
        if not latents_BCHW.isfinite().all():
            raise NonFiniteError(
                "latents: got NaN or infinity, expected finite numbers; the model or adapter is broken"
            )
        dtype = self._allowed(dtype)
        with device_memory(f"decoding {min(self.batch, len(latents_BCHW))} images at once", MEMORY_ADVICE):
            images = torch.cat([self._decode(part, dtype) for part in latents_BCHW.split(self.batch)])
        if not images.isfinite().all():
            precision = dtype if dtype not in ("none", "auto") else str(self.vae.dtype).removeprefix("torch.")
            raise NonFiniteError(
                f"pixels: got NaN or infinity from the VAE in {precision}, expected finite numbers; set model.dtype "
                'and model.autocast to "bfloat16", or to "float32" and "none"'
            )
        return images

    def _decode(self, latents_BCHW: Tensor, dtype: str) -> Tensor:
        part = latents_BCHW.to(self.vae.dtype).contiguous(memory_format=torch.channels_last)
        with autocast(self.device, dtype):
            return self.vae.decode(self._to_vae(part)).sample.float()

    def _to_vae(self, latents_BCHW: Tensor) -> Tensor:
        """What the VAE decodes."""
        if self._statistics is None:
            return latents_BCHW / self._scale
        mean, std = (values.to(latents_BCHW.dtype) for values in self._statistics)
        return latents_BCHW * std / self._scale + mean

    def _from_vae(self, encoded_BCHW: Tensor) -> Tensor:
        """Latents of what the VAE made of images, float32."""
        if self._statistics is None:
            return encoded_BCHW * self._scale
        mean, std = self._statistics
        return (encoded_BCHW - mean) * self._scale / std

    def _allowed(self, dtype: str) -> str:
        """The autocast that is asked for, where this VAE bears it."""
        return "none" if self._forced and dtype == "float16" else dtype

    def encode(self, images_BhwC: np.ndarray) -> Tensor:
        """Latents float32 [B, C, H, W] of images uint8; raises WireError for another dtype, NonFiniteError."""
        if images_BhwC.dtype != np.uint8:
            raise WireError(f"images: got {images_BhwC.dtype}, expected uint8")
        vae = self._encoder
        with device_memory(f"encoding {min(self.batch, len(images_BhwC))} images at once", MEMORY_ADVICE):
            pixels = torch.from_numpy(images_BhwC).to(self.device, torch.float32).permute(0, 3, 1, 2) / 127.5 - 1
            with autocast(self.device, "none"):
                parts = [self._mode(vae.encode(part.to(vae.dtype))) for part in pixels.split(self.batch)]
            latents = torch.cat(parts).float()
        if not latents.isfinite().all():
            raise NonFiniteError('latents of images: got NaN or infinity; set model.dtype to "bfloat16" or "float32"')
        return self._from_vae(latents)

    def _mode(self, encoded: Any) -> Tensor:
        """The most likely latents of a VAE's output."""
        return encoded.latent_dist.mode()

    @cached_property
    def _encoder(self) -> Any:
        """Stock encodes in float32 wherever `force_upcast` is set, also in bfloat16, in which it decodes."""
        return copy.deepcopy(self.vae).float() if self._forced and self.vae.dtype != torch.float32 else self.vae
