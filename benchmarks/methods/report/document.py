"""The page as it grows: lines of Markdown, and the files that they show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks.methods.plan import SCALES, Scale
from benchmarks.methods.results import ABOUT_FILE, Result, finals_on_held_out, find_results
from benchmarks.methods.variants import Variant
from lasro.errors import ConfigError
from lasro.files import write_atomically

PAGE, FILES = "results.md", "results"


class Document:
    """Of the runs in `out`, for the folder `docs`. Raises ConfigError where there are no runs."""

    def __init__(self, out: Path, docs: Path) -> None:
        self.out, self.docs = out, docs
        self.results, self.scale = find_results(out), scale_of(out)
        self.files: list[Path] = []
        self._paragraphs: list[str] = []

    def add(self, *paragraphs: str | None) -> None:
        """Those that there are."""
        self._paragraphs += [one for one in paragraphs if one]

    def show(self, name: str, content: bytes, words: str) -> None:
        """A picture, in the folder of the page's files."""
        self.files.append(self.docs / FILES / name)
        write_atomically(self.files[-1], content)
        self.add(f"![{words}]({FILES}/{name})")

    def finals(self, reward: str, variants: Sequence[Variant]) -> list[Result]:
        """Results that count, in the order of the variants."""
        return [one for variant in variants for one in finals_on_held_out(self.results, reward, variant.name)]

    def write(self) -> list[Path]:
        """The page and what it shows."""
        write_atomically(self.docs / PAGE, ("\n\n".join(self._paragraphs) + "\n").encode())
        return [self.docs / PAGE, *self.files]


def scale_of(out: Path) -> Scale:
    """By the file that the runner keeps."""
    try:
        return SCALES[json.loads((out / ABOUT_FILE).read_text(encoding="utf-8"))["scale"]]
    except FileNotFoundError as error:
        raise ConfigError(f"{out}: got no {ABOUT_FILE}, expected the folder of `benchmarks.methods run`") from error
