"""Read images that arrived from elsewhere, and write PNGs. Imports no torch."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from lasro.errors import WireError

FORMATS = ("PNG", "JPEG", "WEBP")
T = TypeVar("T")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def decode_image(body: bytes, max_pixels: int) -> Image.Image:
    """A PNG, JPEG or WebP as RGB; the size is checked before any pixel is decoded. Raises WireError."""
    return _used(body, max_pixels, lambda opened: opened.convert("RGB"))


def check_image(body: bytes, max_pixels: int) -> None:
    """Raise WireError unless `body` is a whole PNG, JPEG or WebP of at most `max_pixels`.

    A PNG's checksums tell whether it is whole, without decoding it; the others are decoded.
    """
    _used(body, max_pixels, lambda opened: opened.verify() if opened.format == "PNG" else opened.load())


def png_bytes(image_HWC: np.ndarray) -> bytes:
    """`image_HWC` (uint8, RGB) as PNG: lossless, so that the same pixels get the same reward."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _used(body: bytes, max_pixels: int, use: Callable[[Image.Image], T]) -> T:
    try:
        with _read_head(io.BytesIO(body)) as opened:
            width, height = opened.size
            if width * height > max_pixels:
                raise WireError(f"image: got {width} x {height} pixels, expected at most {max_pixels} in all")
            return use(opened)
    except WireError:
        raise
    except UnidentifiedImageError as error:
        raise WireError(f"image: got {len(body)} bytes that are no PNG, JPEG or WebP") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        IndexError,  # of a PNG that holds no pixels
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:
        raise WireError(f"image: a broken PNG, JPEG or WebP ({error})") from error


def _read_head(body: io.BytesIO) -> Image.Image:
    """A PNG, which most are, without asking first who knows the format: that takes a quarter of checking it."""
    if body.getbuffer()[: len(PNG_MAGIC)] == PNG_MAGIC:
        try:
            return PngImageFile(body)
        except SyntaxError as error:
            raise UnidentifiedImageError from error
    return Image.open(body, formats=FORMATS)
