"""Request bodies that carry tensors or images, checked before anything is computed with them.

Shape legend: B samples, CHW one latent, HWC one image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from lasro import wire
from lasro.config import SurrogateRun
from lasro.errors import WireError
from lasro.images import MAX_PIXELS, decode_image
from lasro.validation import explain

MAX_SAMPLES = 1024


class LatentsBody(NamedTuple):
    """Latents [B, C, H, W] float16 or float32 with a prompt each."""

    latents_BCHW: np.ndarray
    prompts: list[str]


class GradientBody(NamedTuple):
    """A gradient request: latents as above, timesteps [B] int64, noise [B, C, H, W]; version None for the newest."""

    latents_BCHW: np.ndarray
    timesteps_B: np.ndarray
    noise_BCHW: np.ndarray
    prompts: list[str]
    version: int | None


def read_run(body: bytes) -> SurrogateRun:
    """The JSON body that creates a run, no number or boolean of which is text; raises WireError."""
    try:
        return SurrogateRun.model_validate_json(body, strict=True)
    except ValidationError as error:
        raise WireError(explain(error)) from error


def _only(tensors: dict[str, np.ndarray], names: set[str]) -> None:
    if tensors.keys() != names:
        raise WireError(f"tensors: got {sorted(tensors)[:8]}, expected {sorted(names)}")


def _latents(array: np.ndarray, name: str, count: int, latent_shape: tuple[int, int, int]) -> np.ndarray:
    if array.shape != (count, *latent_shape) or array.dtype.kind != "f":
        expected = f"{[count, *latent_shape]} float16 or float32"
        raise WireError(f"{name}: got {list(array.shape)} {array.dtype}, expected {expected}")
    return array


def _count(latents: np.ndarray) -> int:
    count = len(latents) if latents.ndim else 0
    if not 1 <= count <= MAX_SAMPLES:
        raise WireError(f"latents: got {count} samples, expected 1 to {MAX_SAMPLES}")
    return count


def read_latents(body: bytes, latent_shape: tuple[int, int, int]) -> LatentsBody:
    """The safetensors body of a score request; raises WireError."""
    tensors, metadata = wire.unpack_tensors(body)
    _only(tensors, {"latents"})
    count = _count(tensors["latents"])
    latents_BCHW = _latents(tensors["latents"], "latents", count, latent_shape)
    return LatentsBody(latents_BCHW, wire.unpack_prompts(metadata, count))


def read_gradient(body: bytes, latent_shape: tuple[int, int, int], max_timestep: int) -> GradientBody:
    """The safetensors body of a gradient request; raises WireError."""
    tensors, metadata = wire.unpack_tensors(body)
    _only(tensors, {"latents", "timesteps", "noise"})
    count, timesteps_B = _count(tensors["latents"]), tensors["timesteps"]
    if timesteps_B.shape != (count,) or timesteps_B.dtype != np.int64:
        raise WireError(f"timesteps: got {list(timesteps_B.shape)} {timesteps_B.dtype}, expected [{count}] int64")
    if timesteps_B.min() < 0 or timesteps_B.max() >= max_timestep:
        got = f"{timesteps_B.min()} to {timesteps_B.max()}"
        raise WireError(f"timesteps: got {got}, expected 0 to {max_timestep - 1} (surrogate.max_timestep)")
    version = metadata.get("version")
    if version is not None and not (version.isascii() and version.isdigit() and len(version) < 12):
        raise WireError(f"version: got {version[:40]!r}, expected a whole number or nothing")
    return GradientBody(
        _latents(tensors["latents"], "latents", count, latent_shape),
        timesteps_B,
        _latents(tensors["noise"], "noise", count, latent_shape),
        wire.unpack_prompts(metadata, count),
        None if version is None else int(version),
    )


def read_images(images: list[bytes], size: tuple[int, int]) -> np.ndarray:
    """Images uint8 [B, h, w, 3] of `size` (h, w), upright. Raises WireError."""
    return np.stack([_pixels(image, index, size) for index, image in enumerate(images)])


def _pixels(image: bytes, index: int, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    try:  # decoded whatever its size, which is known once it is upright; the first of another size ends the request
        decoded = decode_image(image, MAX_PIXELS)
    except WireError as error:
        raise WireError(f"images[{index}]: {error}") from error
    if decoded.size != (width, height):
        got = "{} x {}".format(*decoded.size)
        raise WireError(f"images[{index}]: got {got} pixels, expected {width} x {height}")
    return np.asarray(decoded)
