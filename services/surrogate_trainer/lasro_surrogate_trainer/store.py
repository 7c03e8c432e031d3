"""Runs and weight versions on disk: `runs/RUN/run.json` and `runs/RUN/weights/VERSION.safetensors`.

Every file is written by `lasro.files.write_atomically`. A published version is never changed. It is removed once it is
old, not among the newest and not leased. Readers need no lock: a removed file stays readable for who has it open.
"""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from lasro import files, wire
from lasro.config import SurrogateRun
from lasro.config.surrogate import with_stored_unit
from lasro.errors import ConfigError, NotFoundError
from lasro.validation import explain

DELETED_PREFIX = ".deleted-"
ADVICE = "see LASRO_DATA_DIR"


def storage_errors(path: Path) -> AbstractContextManager[None]:
    """Raise an OSError from inside as StorageError that names LASRO_DATA_DIR."""
    return files.storage_errors(path, ADVICE)


def write_file(path: Path, content: bytes) -> None:
    """Put `content` at `path` atomically and durably; raises StorageError that names LASRO_DATA_DIR."""
    files.write_atomically(path, content, ADVICE)


def check_folder(folder: Path) -> None:
    """Make a folder where there is none and write in it; raises StorageError where that cannot be done."""
    write_file(folder / "writable", b"")
    with storage_errors(folder):
        (folder / "writable").unlink(missing_ok=True)


def numbered(folder: Path) -> list[int]:
    """Numbers of the files `00000012.*` in a folder, in order; none where there is no such folder."""
    return sorted(int(path.stem) for path in folder.glob("[0-9]*.*"))


class RunStore:
    """The folder of one run. `run` matches `wire.NAME_PATTERN`, so it cannot leave the data folder.

    The newest `keep_versions` versions are kept, and those published within the last `keep_versions_s` seconds.
    """

    def __init__(self, data_dir: Path, run: str, keep_versions: int, keep_versions_s: float) -> None:
        self.folder = data_dir / "runs" / run
        self.weights = self.folder / "weights"
        self._keep_versions, self._keep_versions_s = keep_versions, keep_versions_s
        self._lock = threading.Lock()

    def save_config(self, config: SurrogateRun) -> None:
        """Write the run's settings; raises StorageError."""
        write_file(self.folder / "run.json", config.model_dump_json(indent=1).encode())

    def find_config(self) -> SurrogateRun | None:
        """The run's settings, or None where there is no run; raises ConfigError for a file that does not fit."""
        path = self.folder / "run.json"
        if not path.exists():
            return None
        try:
            stored = SurrogateRun.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ConfigError(f"{path}: {explain(error)}; remove the folder to start over") from error
        return stored.model_copy(update={"surrogate": with_stored_unit(stored.surrogate)})

    # --- weights ---------------------------------------------------------------------------------------------

    def versions(self) -> list[int]:
        """Kept versions, oldest first."""
        return numbered(self.weights)

    def publish(self, version: int, state: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
        """Write the weights of a version; raises StorageError."""
        write_file(self._path(version), wire.pack_tensors(state, metadata))

    def read(self, version: int) -> bytes:
        """The safetensors of a version; raises NotFoundError naming the kept ones."""
        try:
            return self._path(version).read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(f"version {version}: not kept; expected one of {self.versions()}") from error

    def withdraw_after(self, version: int) -> None:
        """Remove versions above `version`: they were written, but no commit published them."""
        for later in self.versions():
            if later > version:
                self._path(later).unlink(missing_ok=True)

    def lease(self, version: int) -> None:
        """Keep this version and all later ones until another call; durable. Raises NotFoundError for one not kept."""
        with self._lock:
            if version not in self.versions():
                raise NotFoundError(f"version {version}: not kept; expected one of {self.versions()}")
            write_file(self.folder / "lease.json", f"{version}\n".encode())

    def leased(self) -> int | None:
        """The oldest leased version; None without a lease."""
        try:
            return int((self.folder / "lease.json").read_bytes())
        except FileNotFoundError:
            return None

    def prune(self, needed: Collection[int]) -> None:
        """Remove versions that are old and neither among the newest nor leased nor in `needed`."""
        with self._lock:
            leased = self.leased()
            for version in self.versions()[: -self._keep_versions]:
                if version in needed or (leased is not None and version >= leased):
                    continue
                path = self._path(version)
                with storage_errors(path):
                    if time.time() - path.stat().st_mtime >= self._keep_versions_s:
                        path.unlink()

    def _path(self, version: int) -> Path:
        return self.weights / f"{version:08d}.safetensors"

    # --- ending ----------------------------------------------------------------------------------------------

    def delete(self) -> None:
        """Remove the folder; after a crash half way `clean` removes the rest."""
        deleted = self.folder.with_name(f"{DELETED_PREFIX}{uuid.uuid4().hex}")
        with storage_errors(self.folder):
            if self.folder.exists():
                self.folder.rename(deleted)
            shutil.rmtree(deleted, ignore_errors=True)


def clean(data_dir: Path) -> list[str]:
    """Remove the leftovers of interrupted writes and deletions; returns the names of the runs on disk."""
    runs = data_dir / "runs"
    with storage_errors(runs):
        runs.mkdir(parents=True, exist_ok=True)
        for deleted in runs.glob(f"{DELETED_PREFIX}*"):
            shutil.rmtree(deleted, ignore_errors=True)
        for temporary in [*runs.glob("*/.*.json.*"), *runs.glob("*/*/.*.*.*")]:
            temporary.unlink(missing_ok=True)
        return sorted(path.parent.name for path in runs.glob("*/run.json"))
