"""Where the prompts of a run come from: files, or data sets of the hub or of this disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from lasro.config.base import ConfigPath, Settings, from_folder
from lasro.validation import KIND

DATA_FILES = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".arrow": "arrow",
    ".txt": "text",
}
"""Endings of names that are files, and what the library `datasets` calls their format."""


def _file_or_name(value: str, info: ValidationInfo) -> str:
    """A path where it looks like one, whether or not it is still there, or exists in the folder of the TOML file."""
    if info.context is None:
        return value
    path = from_folder(Path(value), info)
    is_path = value.startswith((".", "~", "/")) or path.suffix.lower() in DATA_FILES
    return str(path) if is_path or path.exists() else value


DatasetSource = Annotated[str, AfterValidator(_file_or_name)]
"""A file or folder (as `ConfigPath`), or a name."""
Cell = str | int | float | bool
"""A value of a column that rows are chosen by."""


class DatasetSettings(Settings):
    """A data set in place of a prompt file, read through the library `datasets`: `pip install 'lasro[datasets]'`.

    Each prompt is taken once. What has more tokens than the model takes is left out, and counted: nobody can shorten it
    here.
    """

    dataset: DatasetSource
    """A short name of `lasro.training.known_datasets`, a hub id, or a folder or file (Parquet, CSV, TSV, JSON, JSONL,
    text)."""
    subset: str | None = None
    """Configuration of a hub id that has several; absent: its only one, or its default."""
    split: str | None = None
    """Absent: the only one."""
    file: str | None = None
    """One file of the hub's repository, in place of what its card names."""
    revision: str | None = None
    """Commit, tag or branch of a hub id; absent: the newest. The run's folder keeps the commit that was read."""
    column: str | None = None
    """Of the prompts; absent: the one called prompt or prompts, in any case."""
    metadata: tuple[str, ...] = ()
    """Columns that go to the rewards as an object; absent: none."""
    where: dict[str, Any] = Field(default_factory=dict)
    """Values that a row must have, by column: text, a number or a boolean, or a list of which it has one. Absent: all
    rows."""
    shuffle: int | None = None
    """Seed of the order in which prompts are taken; absent: that of the data set."""
    skip: Annotated[int, Field(ge=0)] = 0
    """Prompts passed over first, so that one split can be trained and measured on."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Most prompts taken; absent: all."""
    streaming: bool = False
    """Read rows over the network until `limit` is reached, and leave no copy in the hub's cache."""

    @field_validator("metadata")
    @classmethod
    def _distinct_columns(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError(f"got {list(names)}, expected each column once")
        return names

    @field_validator("where")
    @classmethod
    def _cells(cls, where: dict[str, Any]) -> dict[str, Any]:
        for column, wanted in where.items():
            cells = wanted if isinstance(wanted, list | tuple) else [wanted]
            if not cells or not all(isinstance(cell, Cell) for cell in cells):
                raise ValueError(
                    f"{column}: got {wanted!r:.60}, expected text, a number, a boolean, or a list of these"
                )
        return where

    @model_validator(mode="after")
    def _stream_ends(self) -> DatasetSettings:
        if self.streaming and (self.limit is None or self.shuffle is not None):
            raise ValueError("streaming needs limit and no shuffle, which has to read all rows; leave streaming out")
        return self


def _kind_of(value: Any) -> str:
    return f"{KIND}data set" if isinstance(value, Mapping | DatasetSettings) else f"{KIND}file"


PromptSource = Annotated[
    Annotated[ConfigPath, Tag(f"{KIND}file")] | Annotated[DatasetSettings, Tag(f"{KIND}data set")],
    Discriminator(_kind_of),
]
"""A prompt file, or a table that names a data set."""


class PromptSettings(Settings):
    """Prompt files: one a line, JSONL, JSON, CSV or TSV by their names. Paths are relative to the TOML file. In place
    of each, a data set: `train = {dataset = "parti-prompts", limit = 1000}`."""

    train: PromptSource
    """Prompts trained on."""
    held_out: PromptSource
    """Prompts evaluated on, never trained on."""
    drift: PromptSource | None = None
    """Prompts that should keep looking as the base draws them; absent: drift is not measured."""
    comments: bool = False
    """Skip lines of text and JSONL that begin with `#`; else these are prompts too. Of files, not of data sets."""
