"""Child processes watched by one thread: what dies is started again, and all end in order."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lasro.errors import LasroError, UnreachableError
from lasro.service.child_process import last_log_line

QUICK_DEATHS = 5
QUICK_S = 60.0  # importing torch alone may take a quarter of this
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.2, 5.0
POLL_S = 0.05


@dataclass
class Child:
    """One process. `spawn` starts it in a process group of its own; `give_up` is called when it is abandoned."""

    name: str
    spawn: Callable[[], subprocess.Popen[bytes]]
    log_path: Path
    give_up: Callable[[], None] | None = None
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    due_at: float = 0.0
    quick_deaths: int = 0
    failures: int = 0
    abandoned: bool = False


class Supervisor:
    """Keeps its children running from `watch` to `stop`.

    One thread spawns, watches and ends them all: the kernel tells a child that its parent died when the *thread*
    that spawned it ends, so that thread has to outlive every child.
    """

    def __init__(self) -> None:
        self._children: list[Child] = []
        self._failure: str | None = None
        self._started = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def watch(self, children: Sequence[Child]) -> None:
        """Start these children, after those watched already; `stop` ends them before those."""
        self._children = [*self._children, *children]
        if not self._thread.is_alive():
            self._thread.start()

    def check(self) -> None:
        """Raise UnreachableError once a child was abandoned: after `QUICK_DEATHS` deaths in a row."""
        if self._failure is not None:
            raise UnreachableError(self._failure)

    def started(self) -> None:
        """All children have worked. From now on a child that a signal ends is started again without limit.

        Such a signal comes from outside, or from a group that kills its workers until it is dead-lettered.
        """
        self._started = True

    def stop(self) -> None:
        """End all children, the youngest first, within 9 s; returns when none is left."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(POLL_S):
            for child in self._children:
                self._tend(child)
        # The first child is what the others stand on (Redis): they write to it while they end.
        _end(self._children[1:], timeout_s=4.5)
        _end(self._children[:1], timeout_s=3.0)

    def _tend(self, child: Child) -> None:
        now = time.monotonic()
        if child.abandoned or (child.process is not None and child.process.poll() is None):
            return
        if child.process is not None:
            status, child.process = child.process.returncode, None
            self._count_death(child, now, f"exit status {status}", hopeless=status > 0 or not self._started)
        elif now >= child.due_at:
            child.started_at = now
            try:
                child.process = child.spawn()
            except (OSError, LasroError) as error:
                self._count_death(child, now, str(error), hopeless=True)

    def _count_death(self, child: Child, now: float, reason: str, hopeless: bool) -> None:
        if now - child.started_at >= QUICK_S:
            child.quick_deaths = child.failures = 0
        child.due_at = now + min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2**child.quick_deaths)
        child.quick_deaths += 1
        child.failures += hopeless
        if child.failures < QUICK_DEATHS:
            return
        child.abandoned = True
        if child.give_up is not None:
            child.give_up()
        self._failure = (
            f"{child.name}: died {QUICK_DEATHS} times in a row ({reason}): {last_log_line(child.log_path)}; "
            f"see {child.log_path}"
        )


def _end(children: Sequence[Child], timeout_s: float) -> None:
    """SIGTERM to all, SIGKILL to the whole process group of what is left after `timeout_s`."""
    running = [child.process for child in children if child.process is not None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + timeout_s
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
