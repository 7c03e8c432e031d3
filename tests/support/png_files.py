"""PNGs chunk by chunk, as Pillow would never write them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

MAGIC = b"\x89PNG\r\n\x1a\n"
END = b"\0\0\0\0IEND\xaeB`\x82"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
BOMB = zlib.compress(bytes(5 << 20))


def chunk(kind: bytes, content: bytes = b"", length: int | None = None) -> bytes:
    """`length` is what the chunk says of itself, where that is wrong."""
    size = len(content) if length is None else length
    return struct.pack(">I", size) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def header(width: int, height: int, depth: int = 8, colour: int = 2, interlace: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))


def pixels(raw: bytes) -> bytes:
    return chunk(b"IDAT", zlib.compress(raw))


def png_file(values_HWC: np.ndarray, depth: int, colour: int, before: Sequence[bytes] = ()) -> bytes:
    """A PNG of these values, which have `depth` bits each; the chunks `before` its pixels."""
    height, width = values_HWC.shape[:2]
    rows = []
    for row in values_HWC.reshape(height, -1):
        if depth == 16:
            rows.append(row.astype(">u2").tobytes())
        else:
            bits = ((row[:, None] >> np.arange(depth)[::-1]) & 1).astype(np.uint8)
            rows.append(np.packbits(bits.ravel()).tobytes())
    body = b"".join(b"\0" + row for row in rows)
    return MAGIC + header(width, height, depth, colour) + b"".join(before) + pixels(body) + END


def around(before: bytes = b"", after: bytes = b"", colour: int = 2) -> bytes:
    """A PNG of 4 x 4 pixels with these chunks before and after its pixels."""
    raw = bytes(4 * (1 + 4 * CHANNELS[colour]))
    return MAGIC + header(4, 4, colour=colour) + before + pixels(raw) + after + END


HOSTILE_PNGS = {
    "text that inflates without end": around(chunk(b"zTXt", b"a\0\0" + BOMB)),
    "the same behind the pixels": around(after=chunk(b"zTXt", b"a\0\0" + BOMB)),
    "international text that inflates without end": around(chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB)),
    "a colour profile that inflates without end": around(chunk(b"iCCP", b"a\0\0" + BOMB)),
    "64 MiB of text": around(
        b"".join(chunk(b"zTXt", b"%d\0\0" % part + zlib.compress(bytes(1 << 20))) for part in range(65))
    ),
    "an empty colour profile": around(chunk(b"iCCP")),
    "a colour profile of an unknown compression": around(chunk(b"iCCP", b"a\0\1x")),
    "text of an unknown compression": around(chunk(b"zTXt", b"a\0\1x")),
    **{
        f"an empty {kind.decode()}": around(chunk(kind))
        for kind in (b"gAMA", b"cHRM", b"tRNS", b"pHYs", b"sRGB", b"acTL", b"fcTL", b"fdAT")
    },
    "a frame out of order": around(chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", b"\1" * 26)),
    "text in place of transparency": around(chunk(b"tEXt", b"transparency\0abc"), colour=3),
    "text in place of a place": around(chunk(b"tEXt", b"bbox\0abc")),
    "a chunk of 4 GiB": around(chunk(b"tEXt", b"a", length=0xFFFFFFFF)),
    "a second header": around(header(9, 9)),
    "a header of 2 GiB squared": MAGIC + header(1 << 31, 1 << 31) + pixels(bytes(52)) + END,
    "a header of no pixels": MAGIC + header(0, 0) + pixels(bytes(52)) + END,
    "no header": MAGIC + pixels(bytes(52)) + END,
    "a colour type of no name": MAGIC + header(4, 4, colour=5) + pixels(bytes(52)) + END,
    "a depth of no name": MAGIC + header(4, 4, depth=3) + pixels(bytes(52)) + END,
    "a filter of no name": MAGIC + header(4, 4) + pixels(b"\x09" + bytes(51)) + END,
    "pixels that are not compressed": MAGIC + header(4, 4) + chunk(b"IDAT", bytes(52)) + END,
    "pixels of a wrong checksum": MAGIC + header(4, 4) + chunk(b"IDAT", zlib.compress(bytes(52))[:-4] + b"abcd") + END,
    "no pixels": MAGIC + header(4, 4) + END,
    "one row of four": MAGIC + header(4, 4) + pixels(bytes(13)) + END,
    "half a row too little": MAGIC + header(4, 4) + pixels(bytes(45)) + END,
    "a pass too little": MAGIC + header(4, 4, interlace=1) + pixels(bytes(29)) + END,
    "no end": MAGIC + header(4, 4) + pixels(bytes(52)),
}
"""By what is wrong with them; every checksum but one is right."""
