"""Child processes that never outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

PARENT_VARIABLE = "LASRO_PARENT_PID"
PR_SET_PDEATHSIG = 1


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
