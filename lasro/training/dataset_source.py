"""What a table of `[prompts]` names: a folder or file on this disk, or files of the hub."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import NamedTuple

from lasro.config.prompts import DATA_FILES, DatasetSettings
from lasro.errors import ConfigError
from lasro.training.known_datasets import KNOWN_DATASETS


class Source(NamedTuple):
    """Settings of a data set with what its short name stands for. Either `path` or `hub_id` is there."""

    path: Path | None
    hub_id: str | None
    subset: str | None
    split: str | None
    file: str | None
    revision: str | None
    column: str | None
    licence: str | None = None

    @property
    def name(self) -> str:
        """How messages call it."""
        return str(self.path or self.hub_id)


def find_source(settings: DatasetSettings) -> Source:
    """Where the data set is; raises ConfigError where it can be nothing that is read."""
    name, path = settings.dataset, Path(settings.dataset).expanduser()
    own = settings.subset, settings.split, settings.file, settings.revision, settings.column
    # A folder of a short name in the working directory is not meant: one beside the TOML file has its whole path.
    if path.exists() and name not in KNOWN_DATASETS:
        _check_local(settings, path)
        return Source(path, None, *own)
    if name in KNOWN_DATASETS:
        known = KNOWN_DATASETS[name]
        split, file = settings.split or known.split, settings.file or known.file
        column = settings.column or known.column
        return Source(None, known.hub_id, settings.subset, split, file, settings.revision, column, known.licence)
    if name.startswith((".", "~", "/")) or path.suffix.lower() in DATA_FILES:
        raise ConfigError(f"{name}: no such file or folder of prompts")
    if name.count("/") != 1:
        meant = difflib.get_close_matches(name.lower(), KNOWN_DATASETS, n=1)
        known = f"did you mean {meant[0]}?" if meant else f"or one of {', '.join(KNOWN_DATASETS)}"
        raise ConfigError(f"dataset: got {name!r}, expected a file, a folder, a hub id such as owner/name; {known}")
    return Source(None, name, *own)


def _check_local(settings: DatasetSettings, path: Path) -> None:
    for key in ("revision", "file", "streaming"):
        if getattr(settings, key):
            raise ConfigError(f"{path}: {key} is of hub ids, and this is on the disk; leave it out")
    if path.is_file() and path.suffix.lower() not in DATA_FILES:
        raise ConfigError(
            f"{path}: got a name that ends in {path.suffix!r}, expected {', '.join(DATA_FILES)} or a folder"
        )
    if path.is_file() and settings.subset is not None:
        raise ConfigError(f"{path}: got subset {settings.subset!r}, but a file has none; leave it out")
