"""Checks on submitted images: PNG, JPEG or WebP, whole, and not too large to decode."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable

from PIL import Image, UnidentifiedImageError

from lasro.errors import WireError

FORMATS = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", "WEBP": b"RIFF"}


def refuse_bombs() -> None:
    """Make Pillow raise where it would only warn of an image of too many pixels; once per process."""
    warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def check_images(images: Iterable[tuple[int, bytes]], max_pixels: int) -> None:
    """Raise WireError, naming the position, for the first image that cannot be taken. Blocks: use a thread."""
    for index, body in images:
        try:
            _check_image(body, max_pixels)
        except WireError as error:
            raise WireError(f"images[{index}]: {error}") from error


def _check_image(body: bytes, max_pixels: int) -> None:
    kind = next((name for name, magic in FORMATS.items() if body.startswith(magic)), None)
    if kind is None:
        raise WireError(f"got {len(body)} bytes of another kind, expected PNG, JPEG or WebP")
    try:
        with Image.open(io.BytesIO(body), formats=[kind]) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise WireError(f"got {width} x {height} pixels, expected at most {max_pixels} in all")
            # A PNG's checksums tell whether it is whole, without decoding it; the others must be decoded.
            if kind == "PNG":
                image.verify()
            else:
                image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise WireError(f"got far too many pixels, expected at most {max_pixels}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError(f"got a {kind} of {len(body)} bytes that is damaged or cut off") from error
