"""How much memory each process of a command held at most, and how much all of them together, as Linux counts it.

python -m benchmarks.peak_memory lasro train configs/demo.toml --out runs/memory --set train.rounds=2

Of each process VmHWM, its largest resident size: pages that it shares with others are in it, and in theirs. Of all
together PSS, in which a shared page counts once. A part of it is of files, such as weights that are mapped into memory:
pages that the system can drop and read again.
"""

from __future__ import annotations

import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from lasro_client.cli.output import print_table

POLL_S = 0.5
NVIDIA_SMI = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
STARTER = "lasro.service.child_process"
"""What a child of a local stack is for an instant, before it becomes what it is to run."""
MIB = 1 << 20


@dataclass(frozen=True)
class Held:
    """Bytes of one process."""

    name: str
    peak: int
    """VmHWM."""
    pss: int
    of_files: int
    """Of the PSS."""


@dataclass
class Watched:
    """A command that has ended. Processes are those of the same name together, bytes by name."""

    status: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of all its processes."""
    peaks: dict[str, int] = field(default_factory=dict)
    """Largest resident size of each process."""
    together: int = 0
    """Most PSS of all at one time."""
    of_files: int = 0
    """Of it."""
    shares: dict[str, int] = field(default_factory=dict)
    """PSS of each process at that time."""
    gpu: int = 0
    """Most bytes in use on all GPUs together, whoever uses them; 0 without `nvidia-smi`."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def watch(command: Sequence[str], least_free_bytes: int = 0, **options: Any) -> Watched:
    """Run a command, with these options of `Popen`, and look at its processes until it has ended.

    It is killed, with all below it, where less memory than `least_free_bytes` is left on the machine.
    """
    found, started, before = Watched(), time.monotonic(), _cpu_seconds()
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            while process.poll() is None:
                _look(process.pid, found)
                if psutil.virtual_memory().available < least_free_bytes:
                    _kill(process.pid)
                time.sleep(POLL_S)
        except BaseException:  # Ctrl-C leaves nothing behind either
            process.send_signal(signal.SIGINT)
            raise
    found.status, found.seconds = process.returncode, time.monotonic() - started
    found.cpu_seconds = _cpu_seconds() - before
    return found


def _look(root: int, found: Watched) -> None:
    found.gpu = max(found.gpu, _gpu_bytes())
    held = list(_processes(root))
    for each in held:
        found.peaks[each.name] = max(each.peak, found.peaks.get(each.name, 0))
    together = sum(each.pss for each in held)
    if together > found.together:
        found.together, found.of_files = together, sum(each.of_files for each in held)
        found.shares = {each.name: each.pss for each in held}


def _processes(root: int) -> Iterator[Held]:
    """The process and all below it."""
    for each in _tree(root):
        try:
            command = each.cmdline()
            status, rollup = (Path(f"/proc/{each.pid}/{name}").read_text() for name in ("status", "smaps_rollup"))
        except (psutil.Error, OSError):  # it has ended
            continue
        if command:
            yield Held(_name(command), _kib(status, "VmHWM"), _kib(rollup, "Pss"), _kib(rollup, "Pss_File"))


def _gpu_bytes() -> int:
    if shutil.which(NVIDIA_SMI[0]) is None:
        return 0
    done = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, check=False)
    return sum(int(line) for line in done.stdout.split() if line.isdecimal()) << 20


def _tree(root: int) -> list[psutil.Process]:
    try:
        return [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _kill(root: int) -> None:
    for each in _tree(root):
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue


def _kib(text: str, name: str) -> int:
    """A line of /proc such as `Pss:  12 kB`, in bytes."""
    line = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(line[1]) << 10 if line else 0


def _name(command: list[str]) -> str:
    """The module that a Python runs, else the script; of another program its own."""
    modules = [after for flag, after in pairwise(command) if flag == "-m" and after != STARTER]
    if modules:
        return modules[-1]
    program, *rest = [part.rsplit("/", 1)[-1] for part in command[0].split(" ")[:1] + command[1:2]]
    return " ".join([program, *rest]) if program.startswith("python") else program


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(command: list[str]) -> int:
    """Run the command, then print the table; returns its exit status."""
    found = watch(command)
    rows = [(name, _mib(peak), _mib(found.shares.get(name, 0))) for name, peak in found.peaks.items()]
    rows.sort(key=lambda row: -found.peaks[row[0]])
    print_table(("process", "peak", "of all together"), [*rows, ("all together", "", _mib(found.together))])
    print(f"{_mib(found.of_files)} of it are of files; {found.seconds:.1f} s, {found.cpu_seconds:.1f} s of processors")
    return found.status


def _mib(count: int) -> str:
    return f"{count / MIB:,.0f} MiB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
