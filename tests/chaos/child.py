"""`python -m tests.chaos.child MODULE [ARGUMENT ...]`: a service as it is, but for its clock and what is broken in it.

CHAOS_CLOCK names a file of one float64, the seconds by which wall-clock time is off; it may change at any time.
CHAOS_BREAK names one of `breaks.BREAKS`.
"""

from __future__ import annotations

import mmap
import os
import runpy
import struct
import sys
import time
from pathlib import Path

OFFSET = struct.Struct("d")


def set_clock(path: Path, offset_s: float) -> None:
    """For all processes that were started with this file."""
    if not path.exists():
        path.write_bytes(OFFSET.pack(0.0))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), OFFSET.size) as shared:
        OFFSET.pack_into(shared, 0, offset_s)


def follow_clock(path: Path) -> None:
    """Have `time.time` and `time.time_ns` jump as the file says; what measures durations stays as it is."""
    with path.open("rb") as file:
        shared = mmap.mmap(file.fileno(), OFFSET.size, access=mmap.ACCESS_READ)
    seconds, nanoseconds = time.time, time.time_ns
    time.time = lambda: seconds() + OFFSET.unpack_from(shared)[0]
    time.time_ns = lambda: nanoseconds() + int(OFFSET.unpack_from(shared)[0] * 1e9)


def main(module: str, *arguments: str) -> None:
    follow_clock(Path(os.environ["CHAOS_CLOCK"]))
    if broken := os.environ.get("CHAOS_BREAK"):
        from tests.chaos.breaks import BREAKS

        BREAKS[broken](module)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
