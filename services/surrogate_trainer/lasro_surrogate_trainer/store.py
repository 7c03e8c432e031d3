"""Runs and weight versions on disk: `runs/RUN/run.json` and `runs/RUN/weights/VERSION.safetensors`.

Every file is written whole: a temporary file beside it, fsync, rename, fsync of the folder. A version is never
changed once it is there. What a version's file tells of itself (steps, the adapt request and its reply) stands in
its header, so that weights and bookkeeping cannot come apart.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from lasro import wire
from lasro.config import SurrogateRun
from lasro.errors import ConfigError, NotFoundError, StorageError

KEPT_VERSIONS = 4
DOOMED = ".deleted-"


@contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: {error.strerror or error}; expected a writable folder with room, see LASRO_DATA_DIR"
        ) from error


def write_whole(path: Path, body: bytes) -> None:
    """Put `body` at `path` atomically and durably; raises StorageError and then leaves nothing behind."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with _storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class RunStore:
    """The folder of one run. `run` matches `wire.NAME_PATTERN`, so it cannot leave the data folder."""

    def __init__(self, data_dir: Path, run: str) -> None:
        self.folder = data_dir / "runs" / run
        self.weights = self.folder / "weights"

    def save_config(self, config: SurrogateRun) -> None:
        write_whole(self.folder / "run.json", config.model_dump_json(indent=1).encode())

    def find_config(self) -> SurrogateRun | None:
        """The run's settings, or None where there is no run; raises ConfigError for a file that does not fit."""
        path = self.folder / "run.json"
        if not path.exists():
            return None
        try:
            return SurrogateRun.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ConfigError(f"{path}: {wire.explain(error)}; remove the folder to start over") from error

    def versions(self) -> list[int]:
        """Kept versions, oldest first."""
        return sorted(int(path.stem) for path in self.weights.glob("[0-9]*.safetensors"))

    def publish(self, version: int, state: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
        """Write a version and forget all but the newest 4."""
        write_whole(self._path(version), wire.pack_tensors(state, metadata))
        for old in self.versions()[:-KEPT_VERSIONS]:
            self._path(old).unlink(missing_ok=True)

    def read(self, version: int) -> bytes:
        """A version's safetensors; raises NotFoundError naming the kept ones."""
        try:
            return self._path(version).read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(f"version {version}: not kept; expected one of {self.versions()}") from error

    def header(self, version: int) -> dict[str, str]:
        """A version's metadata, without reading its tensors."""
        with _storage(self._path(version)), self._path(version).open("rb") as file:
            size = file.read(8)
            body = size + file.read(int.from_bytes(size, "little"))
        return wire.tensor_header(body)["__metadata__"]

    def delete(self) -> None:
        """Remove the folder; a crash half way leaves one that `clean` removes."""
        doomed = self.folder.with_name(f"{DOOMED}{uuid.uuid4().hex}")
        with _storage(self.folder):
            if self.folder.exists():
                self.folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _path(self, version: int) -> Path:
        return self.weights / f"{version:08d}.safetensors"


def clean(data_dir: Path) -> list[str]:
    """Remove what interrupted writes and deletions left; returns the names of the runs that are there."""
    runs = data_dir / "runs"
    with _storage(runs):
        runs.mkdir(parents=True, exist_ok=True)
        for doomed in runs.glob(f"{DOOMED}*"):
            shutil.rmtree(doomed, ignore_errors=True)
        for temporary in [*runs.glob("*/.*.json.*"), *runs.glob("*/weights/.*.safetensors.*")]:
            temporary.unlink(missing_ok=True)
        return sorted(path.parent.name for path in runs.glob("*/run.json"))
