"""Checks of a request before any reward is called. They block: call them in a thread, unless the request is small."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from lasro import wire
from lasro.errors import WireError
from lasro.images import check_image
from lasro.png import PNG_MAGIC, declared_pixels

SMALL_BYTES = 256 << 10
SMALL_PIXELS = 1 << 18
WHOLE_IMAGES = 8192
"""Images that a process remembers to be whole, by 32 bytes each."""


def is_small(prompts: Sequence[str], images: Sequence[bytes], metadata: Sequence[Any] | None) -> bool:
    """Whether hashing or encoding these takes less time than handing them to a thread.

    A request with metadata counts as large, since the size of metadata is not known.
    """
    if metadata is not None and any(extra is not None for extra in metadata):
        return False
    return sum(map(len, images)) + sum(map(len, prompts)) <= SMALL_BYTES


def are_small_pngs(images: Sequence[bytes]) -> bool:
    """The same for checking images: their pixels are inflated. Only PNGs can be small, since the others are decoded."""
    if sum(map(len, images)) > SMALL_BYTES or not all(image.startswith(PNG_MAGIC) for image in images):
        return False
    return sum(map(declared_pixels, images)) <= SMALL_PIXELS


def canonical_metadata(metadata: Any) -> bytes:
    """Metadata as JSON with sorted keys; raises WireError for what JSON cannot carry to an endpoint."""
    try:
        return json.dumps(metadata, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise WireError(f"metadata: expected what JSON can hold ({error})") from error


class ImageChecker:
    """Checks images, each once: a group is checked when it is posted and when it is scored, and many images come again
    with another reward or after a failure. Any thread may use it.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._whole: dict[bytes, None] = {}
        self._lock = threading.Lock()

    def check(self, images: Iterable[tuple[int, bytes]]) -> None:
        """Raise WireError, naming the position, for the first image that is damaged, too large or of another format."""
        for index, body in images:
            digest = hashlib.sha256(body).digest()
            if digest in self._whole:
                continue
            try:
                check_image(body, self._max_pixels)
            except WireError as error:
                raise WireError(f"images[{index}]: {error}") from error
            self._remember(digest)

    def _remember(self, digest: bytes) -> None:
        with self._lock:
            self._whole[digest] = None
            if len(self._whole) > WHOLE_IMAGES:
                del self._whole[next(iter(self._whole))]


def check_group(submission: wire.GroupSubmission, images: ImageChecker) -> None:
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
    images.check(enumerate(submission.images))
