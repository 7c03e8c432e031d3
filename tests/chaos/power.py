"""A Redis that loses power: killed, and of its append-only file gone what came in about the last second."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.chaos.world import World

EVERY_S = 0.05
LONGEST_LOSS_S = 1.0
"""That `appendfsync everysec` admits."""


class _Seen(NamedTuple):
    at_s: float
    path: Path
    size_bytes: int


class Power:
    """Keeps track of how long the append-only file was. Context manager."""

    def __init__(self, world: World) -> None:
        self._world, self._folder = world, world.redis.folder / "appendonlydir"
        self._seen: deque[_Seen] = deque(maxlen=int(2 * LONGEST_LOSS_S / EVERY_S))
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="power", daemon=True)

    def __enter__(self) -> Power:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(EVERY_S):
            with suppress(FileNotFoundError):  # rewritten meanwhile
                path = self._growing()
                if path is not None:
                    self._seen.append(_Seen(time.monotonic(), path, path.stat().st_size))

    def _growing(self) -> Path | None:
        """The file that is appended to: of those of the server, the one with the highest number."""
        files = sorted(self._folder.glob("*.incr.aof"), key=lambda path: int(path.name.split(".")[-3]))
        return files[-1] if files else None

    def cut(self, loss_s: float) -> bool:
        """Whether something was lost: what was written in the last `loss_s` seconds."""
        pid, path, now_s = self._world.pid("redis"), self._growing(), time.monotonic()
        if pid is None or path is None:
            return False
        known = [seen.size_bytes for seen in self._seen if seen.path == path and seen.at_s <= now_s - loss_s]
        if not known or not self._world.signal("redis", signal.SIGKILL):
            return False
        process = self._world.children["redis"].process
        while process is not None and process.poll() is None:
            time.sleep(0.001)
        size_bytes = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate(known[-1])
        return known[-1] < size_bytes
