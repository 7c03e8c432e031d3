"""Whether a PNG is whole: every checksum, and pixels for every row, without decoding it. Imports no Pillow.

Pillow takes a PNG whose compressed pixels end after some rows for a whole one, and shows the rest black.
"""

from __future__ import annotations

import struct
import zlib

from lasro.errors import WireError

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By colour type."""
PLAIN_CHUNKS = frozenset((b"IHDR", b"IDAT", b"IEND"))
PLAIN_DEPTHS = (8, 16)
LARGEST_FILTER = 4
# Of each pass of an interlaced image: first column and row, then the steps to the next ones.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_CHUNK = struct.Struct(">I4s")
_CHECKSUM = struct.Struct(">I")
_HEADER = struct.Struct(">II5B")


def png_size(body: bytes) -> tuple[int, int]:
    """Width and height that a PNG declares; raises WireError for one without a header."""
    width, height, *_ = _header(body)
    return width, height


def declared_pixels(body: bytes) -> int:
    """Width times height as far as a header says so; never raises."""
    return int.from_bytes(body[16:20]) * int.from_bytes(body[20:24])


def png_depth(body: bytes) -> int:
    """Bits of each channel."""
    return _header(body)[2]


def check_png(body: bytes) -> bool:
    """Raise WireError unless `body` is a PNG with right checksums and all its pixels; the size is for the caller.

    Returns whether it is a plain one: 8 or 16 bits of grey or RGB, with or without alpha, and nothing else in the file.
    A plain one that passes can be decoded.
    """
    width, height, depth, colour, compression, filters, interlace = _header(body)
    kinds, stream = _chunks(body)
    if colour not in CHANNELS:
        raise WireError(f"image: a PNG of colour type {colour}, expected 0, 2, 3, 4 or 6")
    bits = CHANNELS[colour] * depth
    expected = sum(rows * (1 + row) for rows, row in _rows(width, height, bits, bool(interlace)))
    pixels = _inflated(stream, expected)
    is_plain = kinds <= PLAIN_CHUNKS and colour != 3 and depth in PLAIN_DEPTHS
    if not is_plain or compression or filters or interlace:
        return False
    if max(pixels[: expected : 1 + width * bits // 8]) > LARGEST_FILTER:
        raise WireError("image: a broken PNG (a row of an unknown filter)")
    return True


def _header(body: bytes) -> tuple[int, ...]:
    start = len(PNG_MAGIC)
    if len(body) < start + _CHUNK.size + _HEADER.size or _CHUNK.unpack_from(body, start) != (_HEADER.size, b"IHDR"):
        raise WireError(f"image: got {len(body)} bytes that are no PNG, JPEG or WebP")
    header = _HEADER.unpack_from(body, start + _CHUNK.size)
    if not header[0] or not header[1]:
        raise WireError("image: a PNG of no pixels")
    return header


def _chunks(body: bytes) -> tuple[set[bytes], bytes]:
    """The kinds of chunk up to the end of the image, and the compressed pixels."""
    view, at, kind = memoryview(body), len(PNG_MAGIC), b""
    kinds, parts = set[bytes](), []
    while kind != b"IEND":
        if at + _CHUNK.size > len(body):
            raise WireError(f"image: a PNG that ends early, after {len(body)} bytes, expected more chunks")
        length, kind = _CHUNK.unpack_from(body, at)
        end = at + _CHUNK.size + length
        if end + _CHECKSUM.size > len(body):
            raise WireError(f"image: a PNG that ends early, after {len(body)} bytes, within the chunk {kind!r}")
        if zlib.crc32(view[at + 4 : end]) != _CHECKSUM.unpack_from(body, end)[0]:
            raise WireError(f"image: a broken PNG (wrong checksum of the chunk {kind!r})")
        if kind in kinds and kind == b"IHDR":
            raise WireError("image: a broken PNG (a second header)")
        if kind == b"IDAT":
            parts.append(view[at + _CHUNK.size : end])
        kinds.add(kind)
        at = end + _CHECKSUM.size
    return kinds, b"".join(parts)


def _rows(width: int, height: int, bits: int, is_interlaced: bool) -> list[tuple[int, int]]:
    """Of each pass the number of rows and the bytes of each."""
    if not is_interlaced:
        return [(height, (width * bits + 7) // 8)]
    rows = []
    for left, top, step_x, step_y in PASSES:
        columns = (width - left + step_x - 1) // step_x
        if columns > 0:
            rows.append(((height - top + step_y - 1) // step_y, (columns * bits + 7) // 8))
    return rows


def _inflated(stream: bytes, expected: int) -> bytes:
    try:
        # One more than expected, so that the checksum behind the pixels is read too.
        pixels = zlib.decompressobj().decompress(stream, expected + 1)
    except zlib.error as error:
        raise WireError(f"image: a broken PNG ({error})") from error
    if len(pixels) < expected:
        raise WireError(f"image: a PNG that ends early: got {len(pixels)} bytes of pixels, expected {expected}")
    return pixels
