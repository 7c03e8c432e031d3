"""What the settings ask of a VAE: images one by one, in tiles, or by a tiny one in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

from lasro.config import ModelSettings
from lasro.errors import ModelError
from lasro.models.files import local_source, looks_local
from lasro.models.loading import load_network, load_part, loading


def switch(vae: Any, settings: ModelSettings) -> None:
    """Turn on diffusers' own slicing and tiling; raises ModelError for tiles that this VAE cannot have."""
    if settings.vae_slicing:
        vae.enable_slicing()
    if settings.vae_tile is None:
        return
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    least = 4 * scale  # a quarter of the latents of a tile overlaps the next
    if settings.vae_tile % least:
        raise ModelError(f"model.vae_tile: got {settings.vae_tile}, expected a multiple of {least} for this VAE")
    vae.enable_tiling()
    vae.tile_sample_min_size, vae.tile_latent_min_size = settings.vae_tile, settings.vae_tile // scale


def load_tiny_vae(settings: ModelSettings, vae: Any, device: torch.device) -> Any | None:
    """The AutoencoderTiny that the settings name, frozen; None where they name none.

    Raises ModelError for another network, or one of other latents than those of `vae`.
    """
    if settings.tiny_vae is None:
        return None
    where = f"model.tiny_vae {settings.tiny_vae}"
    dtype, folder = getattr(torch, settings.dtype), Path(local_source(settings.tiny_vae))
    with loading(where):  # a path may be one that the system refuses to look at
        is_local = folder.is_dir()
    if not is_local and looks_local(settings.tiny_vae):
        raise ModelError(f"{where}: no such folder; expected that of an AutoencoderTiny, or a hub id")
    with loading(where):
        kind = AutoencoderTiny.load_config(folder if is_local else settings.tiny_vae).get("_class_name")  # pyright: ignore[reportAttributeAccessIssue]
    if kind != AutoencoderTiny.__name__:
        raise ModelError(f"{where}: got a {kind}, expected an AutoencoderTiny such as madebyollin/taesdxl")
    if is_local:
        tiny = load_part(AutoencoderTiny, folder, where, dtype)
    else:
        tiny = load_network(AutoencoderTiny, settings.tiny_vae, where, dtype)
    _check_latents(tiny.config, vae.config, where)
    with loading(where):
        return tiny.requires_grad_(False).eval().to(device)


def _check_latents(tiny: Any, true: Any, where: str) -> None:
    if tiny.latent_channels != true.latent_channels:
        raise ModelError(
            f"{where}: got latents of {tiny.latent_channels} channels, expected the {true.latent_channels} of the VAE"
        )
    scale = tiny.upsampling_scaling_factor ** (len(tiny.decoder_block_out_channels) - 1)
    expected = 2 ** (len(true.block_out_channels) - 1)
    if scale != expected:
        raise ModelError(f"{where}: makes {scale} pixels of a latent's side, expected {expected} as the VAE does")
