"""The emoji as one compact file: sheets of pictures on white and of what they cover, named in the header.

On white, because a picture on any other background follows from it exactly: rgb + (1 - coverage) (background - white).

Shape legend: N emoji, H, W pixels.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lasro.errors import ConfigError
from lasro.files import write_atomically
from tiny_recipe.drawing import EmojiRows

EMOJI_PX = 112  # drawings fill at most 122 pixels of a training image, and mostly fewer
SHEET_SIDE = 16  # emoji in a row of a sheet
FORMAT, QUALITY = "AVIF", 50  # two thirds of the bytes of WebP at the same error
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Emoji:
    """Names and styles of N emoji, and their pictures on white with coverage, uint8 [N, H, W, 4]."""

    names: tuple[str, ...]
    styles: tuple[str, ...]
    pictures: Picture

    def rows(self, device: torch.device) -> EmojiRows:
        planes = torch.from_numpy(self.pictures).to(device).permute(0, 3, 1, 2).contiguous()
        return EmojiRows(planes[:, :3], planes[:, 3:])


def render(svg: str, size_px: int = EMOJI_PX) -> Picture:
    """An SVG on white, with its coverage as fourth channel: uint8 [size_px, size_px, 4]."""
    import resvg_py  # pyright: ignore[reportMissingImports] - only the machine that makes the file has it

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size_px, height=size_px))
    drawn = Image.open(io.BytesIO(png)).convert("RGBA")
    square = Image.new("RGBA", (size_px, size_px))
    square.paste(drawn, ((size_px - drawn.width) // 2, (size_px - drawn.height) // 2))
    white = Image.new("RGBA", square.size, "white")
    return np.dstack([np.asarray(Image.alpha_composite(white, square))[..., :3], np.asarray(square)[..., 3]])


def write_emoji(path: Path, emoji: Iterable[tuple[str, str, Picture]]) -> int:
    """Write (name, style, picture) of all emoji to one file; returns how many."""
    names, styles, pictures = zip(*emoji, strict=True)
    per_sheet = SHEET_SIDE**2
    sheets = {
        f"sheet-{start // per_sheet:03d}": _encoded(np.stack(pictures[start : start + per_sheet]))
        for start in range(0, len(pictures), per_sheet)
    }
    header = {"names": json.dumps(names), "styles": json.dumps(styles)}
    write_atomically(path, save(sheets, header))
    return len(names)


def check_there(path: Path) -> None:
    """Raises ConfigError where the file of emoji was not made yet."""
    if not path.exists():
        raise ConfigError(f"{path}: no emoji there; make the file by `python -m tiny_recipe emoji`, or carry it here")


def read_emoji(path: Path) -> Emoji:
    """Raises ConfigError where there is no such file, or another one."""
    check_there(path)
    try:
        with safe_open(path, "np") as file:
            header = file.metadata()
            names, styles = (tuple(json.loads(header[key])) for key in ("names", "styles"))
            sheets = [file.get_tensor(key) for key in sorted(file.keys())]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not a file of emoji ({error}); make it again") from error
    pictures = np.concatenate([np.stack(list(_decoded(sheet))) for sheet in sheets])
    return Emoji(names, styles, pictures[: len(names)])


def _encoded(pictures_NHW4: Picture) -> Picture:
    size_px = pictures_NHW4.shape[1]
    sheet = np.full((SHEET_SIDE * size_px, SHEET_SIDE * size_px, 4), (255, 255, 255, 0), np.uint8)
    for index, picture in enumerate(pictures_NHW4):
        sheet[_cell(index, size_px)] = picture
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, FORMAT, quality=QUALITY, speed=8, max_threads=1)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def _decoded(sheet: Picture) -> Iterator[Picture]:
    pixels = np.asarray(Image.open(io.BytesIO(sheet.tobytes())).convert("RGBA"))
    for index in range(SHEET_SIDE**2):
        yield pixels[_cell(index, len(pixels) // SHEET_SIDE)]


def _cell(index: int, size_px: int) -> tuple[slice, slice]:
    row, column = divmod(index, SHEET_SIDE)
    return slice(row * size_px, (row + 1) * size_px), slice(column * size_px, (column + 1) * size_px)
