"""Rows of a data set through the library `datasets`: of the hub, of its cache here, or of files on this disk.

The library is optional, and imported when a data set is read. What it and the hub's client raise becomes one line.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lasro.config.prompts import DATA_FILES
from lasro.errors import ConfigError, LasroError
from lasro.training.dataset_source import Source
from lasro.training.numbered_prompt import preview

INSTALL = "pip install 'lasro[datasets]'"
LONGEST_REASON = 500
Row = Mapping[str, Any]


class Table(NamedTuple):
    """A split, before a row of it is read."""

    name: str
    """For messages."""
    subset: str | None
    split: str | None
    revision: str | None
    """The commit that is read; None of files on this disk."""
    columns: list[str]
    data: Any
    """A `Dataset`, an `IterableDataset`, or a list of rows."""

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """All rows with these columns, class labels by their names. Raises ConfigError for a column that is not there,
        and where reading fails."""
        if absent := [name for name in columns if name not in self.columns]:
            expected = ", ".join(map(preview, self.columns))
            raise ConfigError(f"{self.name}: got the column {preview(absent[0])}, expected one of {expected}")
        features = getattr(self.data, "features", None) or {}
        labels = {name: features[name].names for name in columns if hasattr(features.get(name), "names")}
        # Only these: a row may have images, whose decoding takes longer than all the rest.
        data = self.data.select_columns(list(columns)) if features else self.data
        with reading(self.name):
            for row in data:
                yield {name: _cell(row.get(name), labels.get(name)) for name in columns}


def _cell(value: Any, labels: Sequence[str] | None) -> Any:
    known = labels is not None and isinstance(value, int) and 0 <= value < len(labels)
    return labels[value] if known and labels is not None else value


@contextmanager
def reading(name: str) -> Iterator[None]:
    """What the library, the hub's client or the disk raises inside becomes a ConfigError of one line."""
    try:
        yield
    except LasroError:
        raise
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise ConfigError(f"{name}: cannot be read as a data set ({_reason(error)})") from error
    except Exception as error:  # these libraries have no base of their own errors; what is of no other is raised again
        if type(error).__module__.partition(".")[0] not in ("datasets", "huggingface_hub", "httpx", "pyarrow"):
            raise
        raise ConfigError(f"{name}: cannot be read as a data set ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, ConnectionError):
        return "not in the hub's cache here, and the hub cannot be reached; name a file or folder, or go online"
    last = error
    while type(last).__name__ == "DatasetGenerationError" and last.__cause__ is not None:
        last = last.__cause__  # it only says that there was one
    text = str(last).partition("\nExample of usage")[0].replace("Config name is missing.", "subset: got none.")
    return " ".join(text.split())[:LONGEST_REASON] or type(last).__name__


def open_table(source: Source, streaming: bool = False) -> Table:
    """The split that the settings name, or the only one. Raises ConfigError."""
    _import_library(source.name)
    path, revision = source.path, None
    if source.hub_id is not None and source.file is not None:
        if source.subset is not None:
            raise ConfigError(f"{source.name}: got subset {source.subset!r} and a file, expected one of them")
        with reading(source.name):
            path, revision = _hub_file(source.hub_id, source.file, source.revision)
    name = source.name if source.file is None else f"{source.name}/{source.file}"
    if path is not None and path.suffix.lower() == ".json":
        with reading(name):
            rows = _keyed_rows(path)
        if rows is not None:
            if source.split is not None:
                raise ConfigError(f"{name}: split: got {source.split!r}, but this file has none; leave it out")
            return Table(name, None, None, revision, list(rows[0]) if rows else [], rows)
    with reading(name):
        builder = _local_builder(path, source.subset) if path is not None else _hub_builder(source)
        splits = builder.as_streaming_dataset()
        split = _choose_split(name, list(splits), source.split)
        if path is not None and splits[split].features is None:
            data = list(splits[split])  # a table of text, of which a first row alone would leave the file open
        elif path is not None or streaming:  # no copy of what is on this disk
            data = splits[split]
        else:
            builder.download_and_prepare()
            data = builder.as_dataset(split=split)
        columns = getattr(data, "column_names", None) or list(next(iter(data), {}))
    # The cache's only subset, say, where the hub cannot be asked which is the default.
    subset = None if path is not None or builder.config.name == "default" else builder.config.name
    return Table(f"{name} ({split})", subset, split, revision if path is not None else builder.hash, columns, data)


def _import_library(name: str) -> None:
    try:
        import huggingface_hub.utils
        from datasets import disable_progress_bars, load_dataset_builder  # noqa: F401
        from datasets.utils.logging import set_verbosity_error
    except ImportError as error:
        raise ConfigError(f"{name}: a data set is read by the library datasets ({error}); {INSTALL}") from error
    if not sys.stderr.isatty():
        disable_progress_bars()
        huggingface_hub.utils.disable_progress_bars()
    set_verbosity_error()
    huggingface_hub.utils.logging.set_verbosity_error()  # five retries, a warning each, where there is no network


def _local_builder(path: Path, subset: str | None) -> Any:
    from datasets import load_dataset_builder

    if path.is_dir():
        return load_dataset_builder(str(path.resolve()), name=subset)
    # "null" and "NA" may be prompts.
    options: dict[str, Any] = {"keep_default_na": False} if DATA_FILES[path.suffix.lower()] == "csv" else {}
    if path.suffix.lower() == ".tsv":
        options["sep"] = "\t"
    return load_dataset_builder(DATA_FILES[path.suffix.lower()], data_files=str(path.resolve()), **options)


def _hub_builder(source: Source) -> Any:
    """Of the hub; of its cache here where it cannot be asked."""
    from datasets import load_dataset_builder
    from datasets.packaged_modules.cache.cache import Cache

    assert source.hub_id is not None
    builder = load_dataset_builder(source.hub_id, name=source.subset, revision=source.revision)
    # The library takes whatever is in the cache, of another revision too.
    if isinstance(builder, Cache) and source.revision not in (None, builder.hash):
        raise ConfigError(
            f"{source.name}: got revision {source.revision}, which cannot be asked for now; the hub's cache here has "
            f"{builder.hash}; go online, or name that one"
        )
    return builder


def _hub_file(hub_id: str, file: str, revision: str | None) -> tuple[Path, str]:
    """One file of a repository, from the hub or its cache here, and its commit."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if Path(file).suffix.lower() not in DATA_FILES:
        raise ConfigError(f"{hub_id}: file: got {file!r}, expected a name that ends in {', '.join(DATA_FILES)}")
    try:
        path = Path(hf_hub_download(hub_id, file, repo_type="dataset", revision=revision))
    except LocalEntryNotFoundError as error:
        raise ConnectionError(str(error)) from error
    except EntryNotFoundError as error:
        raise ConfigError(f"{hub_id}: has no file {file!r}") from error
    return path, path.parents[len(Path(file).parts) - 1].name  # snapshots/COMMIT/FILE


def _keyed_rows(path: Path) -> list[Row] | None:
    """The rows of a JSON object of objects, as MJHQ-30K has them; None for JSON of another form."""
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("{"):
        return None
    try:
        content = json.loads(text)
    except ValueError:
        return None  # JSONL
    rows = list(content.values())
    return rows if len(rows) > 1 and all(isinstance(row, dict) for row in rows) else None


def _choose_split(name: str, splits: Sequence[str], wanted: str | None) -> str:
    if wanted in splits or (wanted is None and len(splits) == 1):
        return wanted or splits[0]
    got = "none" if wanted is None else repr(wanted)
    raise ConfigError(
        f"{name}: split: got {got}, expected one of {', '.join(splits)}; skip and limit take a part of it"
    )
