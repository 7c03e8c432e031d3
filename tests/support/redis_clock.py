"""Wall clocks of processes, set forward and back while they run by a file that they share.

That of a Redis server needs a library that is preloaded into it.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

OFFSET = struct.Struct("d")
SOURCE = Path(__file__).with_name("clock_shim.c")


def can_set_clock() -> bool:
    """Whether there is a linker that preloads and a compiler to make what it loads."""
    return sys.platform == "linux" and shutil.which("cc") is not None


def set_clock(path: Path, offset_s: float) -> None:
    """Set the clock of all processes that were started with this file to so many seconds off.

    A server may go by the time that it last read for a millisecond or two.
    """
    if not path.exists():
        path.write_bytes(OFFSET.pack(0.0))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), OFFSET.size) as shared:
        OFFSET.pack_into(shared, 0, offset_s)


def clock_environment(folder: Path) -> dict[str, str]:
    """Variables of a server whose clock is `folder/redis-clock`, as `set_clock` sets it; compiles what they name."""
    library, clock = folder / "clock_shim.so", folder / "redis-clock"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, SOURCE], check=True, capture_output=True)
    set_clock(clock, 0.0)
    preloaded = ":".join(filter(None, [str(library), os.environ.get("LD_PRELOAD")]))
    return {"LD_PRELOAD": preloaded, "SHIM_CLOCK": str(clock)}
