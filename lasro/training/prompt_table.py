"""Prompt files that are tables, CSV and TSV: a header, a column of prompts, and others that become metadata."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lasro.training.numbered_prompt import NumberedPrompt, bad_line, numbered_prompt, preview, prompt_names


def read_csv(path: Path, text: str, comments: bool) -> Iterator[NumberedPrompt]:
    """Comma-separated, or separated by semicolons as spreadsheets do in some countries."""
    header = text.lstrip().partition("\n")[0]
    fitting = [
        mark for mark in ",;\t" if prompt_names(next(csv.reader([header], delimiter=mark, skipinitialspace=True), []))
    ]
    if fitting[:1] == ["\t"]:
        raise bad_line(path, 1, "its columns are separated by tabs; name the file .tsv")
    return _read_table(path, text, fitting[0] if fitting else ",", csv.QUOTE_MINIMAL)


def read_tsv(path: Path, text: str, comments: bool) -> Iterator[NumberedPrompt]:
    """Tab-separated. Quotes are part of a prompt, as PartiPrompts is published, unless they enclose whole cells."""
    cells = (cell for line in text.split("\n") for cell in line.split("\t"))
    enclosed = any(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells)
    return _read_table(path, text, "\t", csv.QUOTE_MINIMAL if enclosed else csv.QUOTE_NONE)


def _read_table(path: Path, text: str, delimiter: str, quoting: Any) -> Iterator[NumberedPrompt]:
    rows = _rows(path, text, delimiter, quoting)
    line, names = next(rows, (1, []))
    column = _prompt_column(path, line, names)
    for line, cells in rows:
        if len(cells) != len(names):
            problem = f"got {len(cells)} cells, expected {len(names)} as in the header"
            raise bad_line(path, line, f"{problem}; put quotes around a prompt with commas or line breaks")
        named = {name or f"column_{i}": cell for i, (name, cell) in enumerate(zip(names, cells, strict=True), 1)}
        metadata = {name: cell for i, (name, cell) in enumerate(named.items()) if i != column and (names[i] or cell)}
        yield numbered_prompt(path, line, cells[column], metadata or None)


def _rows(path: Path, text: str, delimiter: str, quoting: Any) -> Iterator[tuple[int, list[str]]]:
    """Rows with something in them, their cells stripped, and the lines on which they begin."""
    # A space may stand before a quote: else the quote would become part of the prompt.
    reader = csv.reader(
        io.StringIO(text), delimiter=delimiter, quoting=quoting, strict=True, skipinitialspace=quoting != csv.QUOTE_NONE
    )
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise bad_line(path, line, f"not a row of a table ({error}); see to its quotes") from error
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield line, [cell.strip() for cell in cells]


def _prompt_column(path: Path, line: int, names: Sequence[str]) -> int:
    found = prompt_names(names)
    if len(found) != 1:
        expected = "expected exactly one named prompt or prompts; name it in the first line"
        raise bad_line(path, line, f"got the columns {preview(', '.join(names))}, {expected}")
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise bad_line(path, line, f"got two columns named {preview(twice[0])}, expected each name once")
    return names.index(found[0])
