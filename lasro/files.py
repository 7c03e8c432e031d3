"""Files that are written whole or not at all, and that a power cut does not take back. Imports nothing heavy."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lasro.errors import StorageError

ADVICE = "free the disk or choose another folder"


@contextmanager
def storage_errors(path: Path, advice: str = ADVICE) -> Iterator[None]:
    """Raise an OSError from inside as StorageError: one line with `path`, the system's reason and `advice`."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"{path}: {reason}; expected a writable folder with room, {advice}") from error


def write_atomically(path: Path, content: bytes, advice: str = ADVICE) -> None:
    """Replace `path` by `content`, mode 0644, and make its folder where there is none; durable on return.

    Raises StorageError, with `advice` at its end. The old file then stands as it was; only where the folder itself
    cannot be synced may the new one stand there already.
    """
    with storage_errors(path, advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            # mkstemp makes files that only their owner can read; a run folder is meant to be shared.
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable: without it a power cut may bring the old file back, or none."""
    if os.name == "nt":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity are refused with ValueError."""
    write_atomically(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
