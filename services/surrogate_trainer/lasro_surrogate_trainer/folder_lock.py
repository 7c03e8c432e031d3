"""A lock on the data folder: a second trainer in it would overwrite the commits of the first."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lasro.errors import ConflictError
from lasro_surrogate_trainer.store import storage_errors

WAIT_S = 30.0
"""A trainer whose parent was killed may still finish a step and save its optimiser."""
POLL_S = 0.1


@contextmanager
def hold_folder(data_dir: Path, wait_s: float = WAIT_S) -> Iterator[None]:
    """Lock the folder while inside, and make it where there is none. The kernel unlocks it when the process ends.

    Raises ConflictError where another trainer holds it for longer than `wait_s`, StorageError where it cannot be made.
    """
    with storage_errors(data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = (data_dir / "lock").open("ab")
    with lock:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ConflictError(
                        f"{data_dir}: another trainer works in this folder; stop it, or set another LASRO_DATA_DIR"
                    ) from error
                time.sleep(POLL_S)
        yield
