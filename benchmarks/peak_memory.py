"""How much memory each process of a command held at most, as Linux counts it (VmHWM), and how much all did together.

python benchmarks/peak_memory.py lasro train configs/demo.toml --out runs/memory --set train.rounds=2
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise

import psutil

from lasro_client.cli.output import print_table

POLL_S = 0.1
MIB = 1 << 20


def main(command: list[str]) -> int:
    """Run the command, then print the table; returns its exit status."""
    peaks: dict[int, int] = {}
    names: dict[int, str] = {}
    together, started = 0, time.monotonic()
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            held = 0
            for pid, name, now, peak in _processes(process.pid):
                names[pid], peaks[pid] = name, max(peak, peaks.get(pid, 0))
                held += now
            together = max(together, held)
            time.sleep(POLL_S)
    rows = [(names[pid], f"{peaks[pid] / MIB:,.0f} MiB") for pid in sorted(peaks, key=lambda pid: -peaks[pid])]
    print_table(("process", "peak"), [*rows, ("all together, at one time", f"{together / MIB:,.0f} MiB")])
    print(f"{time.monotonic() - started:.1f} s")
    return process.returncode


def _processes(root: int) -> Iterator[tuple[int, str, int, int]]:
    """Of the process and all below it: id, what it is, resident bytes without what it shares, and its peak."""
    try:
        found = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for each in found:
        try:
            status = open(f"/proc/{each.pid}/status").read()  # noqa: SIM115 - read at once
            memory = each.memory_info()
            yield each.pid, _name(each.cmdline()), memory.rss - memory.shared, _peak(status)
        except (psutil.Error, OSError):
            continue


def _name(command: list[str]) -> str:
    """The module that a Python runs, else the program."""
    modules = [after for flag, after in pairwise(command) if flag == "-m"]
    return modules[-1] if modules else " ".join(part.rsplit("/", 1)[-1] for part in command[:3])


def _peak(status: str) -> int:
    lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) << 10 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
