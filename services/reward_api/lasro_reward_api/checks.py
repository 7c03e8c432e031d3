"""Checks of a request before any reward is called. They block: call them in a thread, unless the request is small."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from lasro import wire
from lasro.errors import WireError
from lasro.images import PNG_MAGIC, check_image

SMALL_BYTES = 256 << 10


def is_small(prompts: Sequence[str], images: Sequence[bytes], metadata: Sequence[Any] | None) -> bool:
    """Whether hashing or encoding these takes less time than handing them to a thread.

    A request with metadata counts as large, since the size of metadata is not known.
    """
    if metadata is not None and any(extra is not None for extra in metadata):
        return False
    return sum(map(len, images)) + sum(map(len, prompts)) <= SMALL_BYTES


def are_small_pngs(images: Sequence[bytes]) -> bool:
    """The same for checking images. Only PNGs can be small: the others are decoded, to a size that is not known."""
    return sum(map(len, images)) <= SMALL_BYTES and all(image.startswith(PNG_MAGIC) for image in images)


def canonical_metadata(metadata: Any) -> bytes:
    """Metadata as JSON with sorted keys; raises WireError for what JSON cannot carry to an endpoint."""
    try:
        return json.dumps(metadata, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise WireError(f"metadata: expected what JSON can hold ({error})") from error


def check_images(images: Iterable[tuple[int, bytes]], max_pixels: int) -> None:
    """Raise WireError, naming the position, for the first image that is damaged, too large or of another format."""
    for index, body in images:
        try:
            check_image(body, max_pixels)
        except WireError as error:
            raise WireError(f"images[{index}]: {error}") from error


def check_group(submission: wire.GroupSubmission, max_pixels: int) -> None:
    """Raise WireError for a group that could not be scored or trained on."""
    canonical_metadata(submission.metadata)
    tensors, _ = wire.unpack_tensors(submission.latents)
    latents_NCHW = tensors.get("latents")
    if latents_NCHW is None or len(tensors) != 1:
        raise WireError(f"latents: got the tensors {sorted(tensors)[:5]}, expected one named 'latents'")
    count = len(submission.stages)
    if latents_NCHW.ndim != 4 or latents_NCHW.shape[0] != count or latents_NCHW.dtype.kind != "f":
        got = f"{latents_NCHW.dtype} {list(latents_NCHW.shape)}"
        raise WireError(f"latents: got {got}, expected float16 or float32 [{count}, C, H, W]")
    check_images(enumerate(submission.images), max_pixels)
