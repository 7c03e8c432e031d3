"""A small disk that can be full: a tmpfs where this process may mount one, else limits on the size of files."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

NAMESPACE_VARIABLE = "CHAOS_NAMESPACE"
SIZE_MIB = 384
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")


def enter_namespace(module: str, arguments: list[str]) -> None:
    """Start this program again where it may mount a disk of its own; does nothing where that cannot be."""
    if NAMESPACE_VARIABLE in os.environ or shutil.which(UNSHARE[0]) is None:
        return
    trial = [*UNSHARE, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/tmp"]
    if subprocess.run(trial, capture_output=True, check=False).returncode == 0:
        command = [*UNSHARE, sys.executable, "-m", module, *arguments]
        os.execvpe(command[0], command, {**os.environ, NAMESPACE_VARIABLE: "1"})


class Disk:
    """In `folder`; `kind` says what it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.kind = "limit on file sizes"
        if NAMESPACE_VARIABLE in os.environ:
            command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", str(folder)]
            subprocess.run(command, capture_output=True, check=True)
            self.kind = "tmpfs"

    def close(self) -> None:
        """The mount ends with its namespace, too."""
        if self.kind == "tmpfs":
            subprocess.run(["umount", "--lazy", str(self.folder)], capture_output=True, check=False)

    def be_full(self, seconds: float, pid: int) -> None:
        """For everybody; with a limit on file sizes only for the process `pid`."""
        if self.kind == "tmpfs":
            self._fill(seconds)
            return
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
        time.sleep(seconds)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    def _fill(self, seconds: float) -> None:
        ballast = self.folder / "ballast"
        deadline = time.monotonic() + seconds
        try:
            with ballast.open("wb") as file:
                while time.monotonic() < deadline:  # what others free meanwhile is taken, too
                    with suppress(OSError):  # another was faster
                        free = shutil.disk_usage(self.folder).free
                        os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), free)
                    time.sleep(0.02)
        finally:
            ballast.unlink()
