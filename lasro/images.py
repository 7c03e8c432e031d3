"""Read images that arrived from elsewhere, and write PNGs. Imports no torch.

Whoever scores or trains here sees the same RGB pixels, those of `decode_image`: 16 bits become their upper 8, the
orientation in the EXIF data is applied, what is transparent lies on white, and colour profiles are left out.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose

from lasro.errors import WireError
from lasro.png import PNG_MAGIC, check_png, png_depth, png_size
from lasro.validation import one_line

MAX_PIXELS = 4096 * 4096
"""Largest image where no setting says otherwise."""
FORMATS = ("PNG", "JPEG", "WEBP")
UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
"""By the orientation in the EXIF data, what turns an image upright."""
BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,  # where the interpreter was asked to raise them
    Image.DecompressionBombError,
    struct.error,
    zlib.error,
)
"""What Pillow raises for damaged files: its parsers let through whatever a wrong length or type leads to."""


def decode_image(body: bytes, max_pixels: int) -> Image.Image:
    """A whole PNG, JPEG or WebP as RGB; the size is checked before any pixel is decoded. Raises WireError."""
    if body.startswith(PNG_MAGIC):
        _check_size(png_size(body), max_pixels)
        check_png(body)
    return _decoded(body, max_pixels)


def check_image(body: bytes, max_pixels: int) -> None:
    """Raise WireError where `decode_image` would. A plain PNG, which most are, is not decoded for that."""
    if body.startswith(PNG_MAGIC):
        _check_size(png_size(body), max_pixels)
        if check_png(body):
            return
    _decoded(body, max_pixels)


def png_bytes(image_HWC: np.ndarray) -> bytes:
    """`image_HWC` (uint8, RGB) as PNG: lossless, so that the same pixels get the same reward."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _decoded(body: bytes, max_pixels: int) -> Image.Image:
    with _refused(body), Image.open(io.BytesIO(body), formats=FORMATS) as opened:
        _check_size(opened.size, max_pixels)
        frames = getattr(opened, "n_frames", 1)
        if frames > 1 and opened.format != "MPO":  # a camera's JPEG, whose further frames are previews
            raise WireError(f"image: got an animation of {frames} frames, expected a still image")
        opened.load()
        orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
        image = _as_rgb(opened, png_depth(body) if opened.format == "PNG" else 8)
        return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise WireError(f"image: got {width} x {height} pixels, expected at most {max_pixels} in all")


def _as_rgb(opened: Image.Image, depth: int) -> Image.Image:
    """The image on white, in 8 bits of each channel; `depth` is what the file has."""
    transparent = opened.info.get("transparency")
    if opened.mode == "I;16":
        grey_HW = np.asarray(opened)
        return Image.fromarray(np.where(grey_HW == transparent, 255, grey_HW >> 8).astype(np.uint8)).convert("RGB")
    if opened.mode == "RGB" and depth == 16 and transparent is not None:
        raise WireError("image: got 16-bit RGB with a transparent colour, expected an alpha channel in its place")
    if opened.mode == "L" and depth < 8 and transparent is not None:
        # Pillow spreads the greys of 2 or 4 bits over 8, but leaves the transparent one as it is in the file.
        opened.info["transparency"] = transparent * 255 // (2**depth - 1)
    if not opened.has_transparency_data:
        return opened.convert("RGB")
    pixels = opened.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")


@contextmanager
def _refused(body: bytes) -> Iterator[None]:
    """Raise WireError for what Pillow raises."""
    try:
        yield
    except WireError:
        raise
    except UnidentifiedImageError as error:
        raise WireError(f"image: got {len(body)} bytes that are no PNG, JPEG or WebP") from error
    except BROKEN as error:
        reason = one_line(str(error)) or type(error).__name__
        raise WireError(f"image: a broken PNG, JPEG or WebP ({reason})") from error
