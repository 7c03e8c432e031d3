"""Codecs of the autoencoders that transformers are trained with, scaled as their stock pipelines do.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from lasro.errors import ModelError
from lasro.models.latent_codec import LatentCodec
from lasro.validation import one_line

PATCH = 2
"""Side in latents of a FLUX.2 patch."""


class DeepCompressionCodec(LatentCodec):
    """`AutoencoderDC` of SANA: it encodes to latents, not to a distribution."""

    def _mode(self, encoded: Any) -> Tensor:
        return encoded.latent


class ShiftedCodec(LatentCodec):
    """`AutoencoderKL` of a flow-matching pipeline, which applies its `shift_factor`."""

    def _read_scaling(self, where: str, normalises: bool) -> None:
        super()._read_scaling(where, normalises)
        self._shift: float = self.vae.config.shift_factor
        if not isinstance(self._shift, int | float) or not abs(self._shift) < float("inf"):
            raise ModelError(f"{where}: got shift_factor {one_line(repr(self._shift))}, expected a number")

    def _to_vae(self, latents_BCHW: Tensor) -> Tensor:
        return latents_BCHW / self._scale + self._shift

    def _from_vae(self, encoded_BCHW: Tensor) -> Tensor:
        return (encoded_BCHW - self._shift) * self._scale


class PatchedCodec(LatentCodec):
    """`AutoencoderKLFlux2`: latents are patches of 2 x 2, normalised by the statistics of its batch norm.

    Latents [B, 4 C, H / 2, W / 2] for the VAE's [B, C, H, W].
    """

    def _read_scaling(self, where: str, normalises: bool) -> None:
        norm = self.vae.bn
        if not ((norm.running_var >= 0) & norm.running_mean.isfinite()).all():
            raise ModelError(f"{where}: got a running_var below 0 or a mean that is not finite in its bn")
        self._mean = norm.running_mean.reshape(1, -1, 1, 1)
        self._std = (norm.running_var.reshape(1, -1, 1, 1) + self.vae.config.batch_norm_eps).sqrt()

    def _to_vae(self, latents_BCHW: Tensor) -> Tensor:
        mean, std = (value.to(latents_BCHW.dtype) for value in (self._mean, self._std))
        return pixel_shuffle(latents_BCHW * std + mean, PATCH)

    def _from_vae(self, encoded_BCHW: Tensor) -> Tensor:
        mean, std = (value.to(encoded_BCHW.dtype) for value in (self._mean, self._std))
        return (pixel_unshuffle(encoded_BCHW, PATCH) - mean) / std
