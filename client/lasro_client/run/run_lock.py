"""One run at a time in a folder. Imports no torch: a second run is refused before that takes seconds."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from lasro.folder_lock import hold_folder, is_held

PROBLEM = "a run goes on in this folder"
ADVICE = "wait for it, stop it, or choose another folder with --out"


def hold_run(folder: Path) -> AbstractContextManager[None]:
    """Keep other runs out of the folder while inside, which is made where there is none.

    Raises ConflictError, naming the process, where a run goes on in it, and StorageError.
    """
    return hold_folder(folder, PROBLEM, ADVICE)


def check_free(folder: Path) -> None:
    """Raise the same ConflictError; holds nothing, so that another run may still be first."""
    if is_held(folder):
        with hold_run(folder):  # waits a moment: a command that lists runs holds the lock for an instant
            pass
