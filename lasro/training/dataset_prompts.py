"""Prompts of a data set: the rows that the settings choose, each prompt once, in the settings' order."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from lasro.config.prompts import DatasetSettings
from lasro.errors import ConfigError
from lasro.training.dataset_rows import Row, Table, open_table
from lasro.training.dataset_source import find_source
from lasro.training.numbered_prompt import (
    NumberedPrompt,
    bad_line,
    numbered_prompt,
    preview,
    prompt_names,
    shows_nothing,
)

Fits = Callable[[Sequence[str]], Sequence[bool]]
"""Which of some prompts a model takes."""
PROMPTS_AT_ONCE = 256


class DatasetRecord(NamedTuple):
    """What was read, for the run's folder and for people. Rows are read until `limit` is reached, or some more."""

    name: str
    subset: str | None
    split: str | None
    revision: str | None
    """The hub's commit; None of files on this disk."""
    licence: str | None
    """As looked up for a short name; None for all others."""
    prompts: int
    rows: int
    """Those that `where` chooses."""
    repeated: int
    """Rows whose prompt and metadata an earlier one has."""
    empty: int
    too_long: int

    def __str__(self) -> str:
        """One line: what was taken, and what was left out."""
        where = [part for part in (self.subset, self.split, self.revision and f"revision {self.revision}") if part]
        what = f"{self.prompts:,} prompts of {self.name}" + (f" ({', '.join(where)})" if where else "")
        counts = (("repeated", self.repeated), ("empty", self.empty), ("too long for the model", self.too_long))
        left_out = ", ".join(f"{count:,} {why}" for why, count in counts if count)
        return f"{what}, out of {self.rows:,} rows" + (f"; left out: {left_out}" if left_out else "")


class DatasetPrompts(NamedTuple):
    """`prompts` as the run takes them, their rows counted from 1."""

    prompts: list[NumberedPrompt]
    record: DatasetRecord


def read_dataset(settings: DatasetSettings, fits: Fits | None = None) -> DatasetPrompts:
    """Read the prompts that the settings ask for, without those that do not fit.

    Raises ConfigError where there is none, and for what cannot be read: as `NAME:ROW: ...` where a row is to blame.
    """
    source = find_source(settings)
    table = open_table(source, settings.streaming)
    counts: Counter[str] = Counter()
    found: Iterable[NumberedPrompt] = _distinct(_rows(table, settings, source.column, counts), counts)
    if settings.shuffle is not None:
        found = list(found)
        random.Random(settings.shuffle).shuffle(found)
    end = None if settings.limit is None else settings.skip + settings.limit
    taken = list(islice(_fitting(found, fits, counts), settings.skip, end))
    counted = counts["rows"], counts["repeated"], counts["empty"], counts["too long"]
    if not taken:
        problem = "got no prompt, expected at least one; see to where and skip"
        raise ConfigError(
            f"{table.name}: {problem} ({counted[0]} rows fit, of which {sum(counted[1:])} are repeated, empty or too "
            "long for the model)"
        )
    where = source.name, table.subset or source.subset, table.split, table.revision, source.licence
    return DatasetPrompts(taken, DatasetRecord(*where, len(taken), *counted))


def _rows(
    table: Table, settings: DatasetSettings, column: str | None, counts: Counter[str]
) -> Iterator[NumberedPrompt]:
    """The prompts of all rows that `where` chooses, but empty ones."""
    column = column or _prompt_column(table)
    for line, row in enumerate(table.rows(list(dict.fromkeys([column, *settings.metadata, *settings.where]))), 1):
        if not all(_is_wanted(row[name], wanted) for name, wanted in settings.where.items()):
            continue
        counts["rows"] += 1
        text = row[column]
        if text is None or (isinstance(text, str) and shows_nothing(text)):
            counts["empty"] += 1
        elif not isinstance(text, str):
            expected = "expected text; name the column of the prompts"
            raise bad_line(table.name, line, f"column {preview(column)}: got {preview(text)}, {expected}")
        else:
            yield numbered_prompt(table.name, line, text, _metadata(table.name, line, row, settings.metadata))


def _prompt_column(table: Table) -> str:
    found = prompt_names(table.columns)
    if len(found) != 1:
        columns = preview(", ".join(table.columns))
        raise ConfigError(f"{table.name}: column: got none, expected the one of the prompts, of {columns}")
    return found[0]


def _is_wanted(cell: Any, wanted: Any) -> bool:
    return cell in wanted if isinstance(wanted, list | tuple) else cell == wanted


def _metadata(name: str, line: int, row: Row, columns: Sequence[str]) -> dict[str, Any] | None:
    """What the rewards get; a cell without a value is left out."""
    found = {column: row[column] for column in columns if row[column] is not None}
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise bad_line(name, line, f"metadata: {error}; leave that column out") from error
    return found or None


def _distinct(prompts: Iterable[NumberedPrompt], counts: Counter[str]) -> Iterator[NumberedPrompt]:
    """Each prompt once: rows of a preference data set, say, are comparisons, a hundred of one prompt."""
    seen: set[tuple[str, str]] = set()
    for prompt in prompts:
        key = prompt.text, json.dumps(prompt.metadata, sort_keys=True)
        if key in seen:
            counts["repeated"] += 1
        else:
            seen.add(key)
            yield prompt


def _fitting(prompts: Iterable[NumberedPrompt], fits: Fits | None, counts: Counter[str]) -> Iterator[NumberedPrompt]:
    if fits is None:
        yield from prompts
        return
    left = iter(prompts)
    while some := list(islice(left, PROMPTS_AT_ONCE)):
        for prompt, fit in zip(some, fits([prompt.text for prompt in some]), strict=True):
            if fit:
                yield prompt
            else:
                counts["too long"] += 1
