"""A lock on a folder, for what two processes must not do there at once. It dies with the process that holds it.

The file `lock` in the folder is locked by `flock` and says who holds it. A killed process leaves the file, but no lock.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from lasro.errors import ConflictError
from lasro.files import ADVICE, storage_errors

log = logging.getLogger("lasro")
LOCK_FILE = "lock"
POLL_S = 0.05
BRIEFLY_S = 0.5
"""To wait where nobody is expected to let go: `is_held` takes the lock for an instant."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What `flock` answers on file systems that have no locks, such as some network mounts."""
LONGEST_HOLDER = 200


def take_lock(folder: Path, problem: str, advice: str, wait_s: float = BRIEFLY_S, storage: str = ADVICE) -> IO[bytes]:
    """Lock the folder, and make it where there is none; closing the file that is returned unlocks it.

    Raises ConflictError with `problem`, the holder and `advice` where it is still held after `wait_s`, StorageError
    with the advice `storage` where there can be no such file. On a file system without locks it is as if nobody held
    one, with a warning.
    """
    with storage_errors(folder, storage):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("a+b")
    deadline = time.monotonic() + wait_s
    try:
        while not _locked(file, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise ConflictError(f"{folder}: {problem}{holder(folder)}; {advice}")
            time.sleep(POLL_S)
    except BaseException:
        file.close()
        raise
    with suppress(OSError):  # a full disk takes no name; the lock needs no room
        file.truncate(0)
        file.write(_own_name())
        file.flush()
    return file


@contextmanager
def hold_folder(
    folder: Path, problem: str, advice: str, wait_s: float = BRIEFLY_S, storage: str = ADVICE
) -> Iterator[None]:
    """As `take_lock`, held while inside."""
    with take_lock(folder, problem, advice, wait_s, storage):
        yield


def is_held(folder: Path) -> bool:
    """Whether a process holds the folder's lock; False where there is no such file."""
    try:
        file = (folder / LOCK_FILE).open("rb")
    except OSError:
        return False
    with file:
        return not _locked(file, fcntl.LOCK_SH)


def holder(folder: Path) -> str:
    """Who holds the lock, as ` (process 7 on host since 2026-01-31 12:00:00 UTC)`; empty where nobody said."""
    try:
        name = (folder / LOCK_FILE).read_bytes()[:LONGEST_HOLDER].decode(errors="replace").strip()
    except OSError:
        return ""
    return f" ({name})" if name else ""


def _own_name() -> bytes:
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode()


def _locked(file: IO[bytes], kind: int) -> bool:
    """Lock the file without waiting; returns whether it is locked now. Raises OSError."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.warning("%s: %s on this file system; nothing keeps a second process out", file.name, error.strerror)
    return True
