"""Child processes that never outlive their parent, and the cores of this one."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

PARENT_VARIABLE = "LASRO_PARENT_PID"
PR_SET_PDEATHSIG = 1


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def die_with_parent() -> None:
    """Arrange that this process gets SIGTERM when the process named in LASRO_PARENT_PID is gone, SIGKILL included.

    On Linux by PR_SET_PDEATHSIG, which survives exec; elsewhere by a thread that watches the parent's pid.
    Does nothing where the variable is not set.
    """
    text = os.environ.get(PARENT_VARIABLE)
    if text is None:
        return
    parent_pid = int(text)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    else:
        threading.Thread(target=_watch, args=(parent_pid,), daemon=True).start()
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGTERM)


def _watch(parent_pid: int, interval_s: float = 0.5) -> None:
    while os.getppid() == parent_pid:
        time.sleep(interval_s)
    os.kill(os.getpid(), signal.SIGTERM)


def last_log_line(log_path: Path, tail_bytes: int = 4096) -> str:
    """The last line of a log that is not blank; of a JSON line, its message or the end of its exception."""
    try:
        with log_path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - tail_bytes))
            lines = log.read().decode("utf-8", "replace").split("\n")
    except OSError:
        lines = []
    return _message_of(next((line.strip() for line in reversed(lines) if line.strip()), "it wrote no log"))


def _message_of(line: str) -> str:
    try:
        fields = json.loads(line)
        text = str(fields.get("exception") or fields["message"]).strip()
    except (ValueError, KeyError, AttributeError):
        return line
    return text.rpartition("\n")[2]


def main(command: list[str]) -> None:
    """`python -m lasro.service.child_process COMMAND ...`: run COMMAND such that it ends with LASRO_PARENT_PID.

    Arms the signal before the command has loaded anything, so that a slow start outlives nobody either.
    """
    die_with_parent()
    if sys.platform == "linux":
        os.execvp(command[0], command)
    child = subprocess.Popen(command, close_fds=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: child.send_signal(received))
    sys.exit(child.wait())


if __name__ == "__main__":
    main(sys.argv[1:])
