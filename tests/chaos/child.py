"""`python -m tests.chaos.child MODULE [ARGUMENT ...]`: a service as it is, but for its clock and what is broken in it.

CHAOS_CLOCK names a file of one float64, the seconds by which wall-clock time is off; it may change at any time.
CHAOS_BREAK names one of `breaks.BREAKS`.
"""

from __future__ import annotations

import mmap
import os
import runpy
import sys
import time
from pathlib import Path

from tests.support.redis_clock import OFFSET


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
