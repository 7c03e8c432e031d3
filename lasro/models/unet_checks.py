"""Whether a UNet does what is asked of it here, and fits the rest of its pipeline: read from configurations alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from lasro.config import ModelSettings
from lasro.errors import ModelError
from lasro.validation import one_line

LARGEST_SIDE = 1024  # of latents, thus 8192 pixels by usual VAEs
UNSUPPORTED = ("class_embed_type", "encoder_hid_dim_type", "center_input_sample", "time_embedding_act_fn")
"""The surrogate's feature extractor does not compute what these ask for."""
MICRO_CONDITIONING = ("original_size", "target_size", "crops_top_left")


def check_pipeline(
    pipeline: Any, text_encoders: Sequence[str], settings: ModelSettings, check_unet: Callable[[Any], None]
) -> None:
    """Raises ModelError naming part and setting where the parts of a pipeline are not made for each other.

    `check_unet` is the family's own, of the UNet's configuration.
    """
    path, unet = settings.path, settings.unet
    of_pipeline = f"model.path {path}"
    of_unet = f"{of_pipeline}: unet" if unet is None else f"model.unet {unet}"
    _check_kind(pipeline.unet, UNet2DConditionModel, of_unet)
    _check_kind(pipeline.vae, AutoencoderKL, f"{of_pipeline}: vae")
    config, channels = pipeline.unet.config, pipeline.vae.config.latent_channels
    for name in ("in_channels", "out_channels"):
        if config[name] != channels:
            hint = "; an inpainting UNet takes a mask too" if config[name] == 2 * channels + 1 else ""
            raise ModelError(
                f"{of_unet}: got {name} {config[name]}, expected the {channels} of the VAE's latents{hint}"
            )
    width = sum(getattr(pipeline, encoder).config.hidden_size for encoder in text_encoders)
    dims = config.cross_attention_dim
    if {*dims} != {width} if isinstance(dims, list | tuple) else dims != width:
        raise ModelError(
            f"{of_unet}: got cross_attention_dim {dims}, expected the {width} of {' and '.join(text_encoders)}"
        )
    for name in UNSUPPORTED:
        if config.get(name):
            raise ModelError(f"{of_unet}: got {name} {config[name]!r}, which is not supported; expected none")
    try:
        latent_size(config)
        check_unet(config)
    except ModelError as error:
        raise ModelError(f"{of_unet}: {error}") from error


def check_micro_conditioning(settings: ModelSettings, is_taken: bool) -> None:
    """Raises ModelError for sizes that a UNet would not be told: `is_taken` says whether its family's are."""
    given = [name for name in MICRO_CONDITIONING if getattr(settings, name) is not None]
    if given and not is_taken:
        got = list(getattr(settings, given[0]))
        raise ModelError(f"{given[0]}: got {got}, but only an SDXL-class UNet is told such; leave it out")


def latent_size(config: Any) -> tuple[int, int]:
    """Height and width of a UNet's latents; raises ModelError where its `sample_size` is neither a number nor two."""
    size = config.sample_size
    sides = [size, size] if isinstance(size, int) else size
    if (
        isinstance(sides, list | tuple)
        and len(sides) == 2
        and all(isinstance(n, int) and 0 < n <= LARGEST_SIDE for n in sides)
    ):
        return sides[0], sides[1]
    expected = f"the latents' side, or height and width, up to {LARGEST_SIDE}"
    raise ModelError(f"got sample_size {one_line(repr(size))}, expected {expected}")


def image_size(config: Any, scale: int, settings: ModelSettings) -> tuple[int, int]:
    """Height and width in pixels: what is asked for, else what the network was made for at `scale` pixels a latent."""
    height, width = latent_size(config)
    return chosen_size((height * scale, width * scale), scale, settings)


def chosen_size(made_for: tuple[int, int], multiple: int, settings: ModelSettings) -> tuple[int, int]:
    """Height and width in pixels: what is asked for, else what the model was made for; raises ModelError."""
    sides = []
    for name, default in zip(("height", "width"), made_for, strict=True):
        side = getattr(settings, name) or default
        if side % multiple:
            nearest = max(1, round(side / multiple)) * multiple
            raise ModelError(f"{name}: got {side} pixels, expected a multiple of {multiple}, such as {nearest}")
        sides.append(side)
    return sides[0], sides[1]


def _check_kind(part: Any, kind: type, where: str) -> None:
    if not isinstance(part, kind):
        raise ModelError(f"{where}: got a {type(part).__name__}, expected a {kind.__name__}")
