"""Held-out images of the base and of every variant side by side: the same prompt and noise in a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from benchmarks.methods.measure import BASE_FOLDER, SHOWN, strip_file
from benchmarks.methods.results import Result, folder_of
from lasro.num_steps import ONE_AND_TWO, NumSteps, title

EDGE, HEAD, GAP = 96, 16, 8


def picture_sheet(out: Path, reward: str, results: Sequence[Result]) -> Image.Image | None:
    """A column a variant, its first seed; blocks for one step and two. None where there are no pictures."""
    columns = {"base": out / reward / BASE_FOLDER}
    for result in results:
        columns.setdefault(result["variant"], out / folder_of(result))
    columns = {name: folder for name, folder in columns.items() if strip_file(folder, 2).exists()}
    if len(columns) < 2:
        return None
    block = HEAD + SHOWN * EDGE
    page = Image.new("RGB", (len(columns) * EDGE, len(ONE_AND_TWO) * (block + GAP) - GAP), "white")
    for row, steps in enumerate(ONE_AND_TWO):
        for column, (name, folder) in enumerate(columns.items()):
            _paste(page, column * EDGE, row * (block + GAP), name, strip_file(folder, steps), steps)
    return page


def _paste(page: Image.Image, left: int, top: int, name: str, file: Path, steps: NumSteps) -> None:
    """A strip of images as a column, below what it is."""
    words = f"{name}, {title(steps).lower()}" if name == "base" else name.removeprefix("lasro-")
    ImageDraw.Draw(page).text((left + 2, top + 2), words[:16], fill="black")
    with Image.open(file) as strip:
        side = strip.height
        for index in range(strip.width // side):
            image = strip.crop((index * side, 0, (index + 1) * side, side))
            page.paste(image.resize((EDGE, EDGE), Image.Resampling.LANCZOS), (left, top + HEAD + index * EDGE))
