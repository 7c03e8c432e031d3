"""A Redis server on a TCP port, with an append-only file, that can be ended and started again within milliseconds."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from typing import Self

import redis

from lasro.redis_store.connection import connect
from lasro.redis_store.embedded import find_server

START_S = 20.0


class RedisOnTcp:
    """Context manager; every option of the server may be given."""

    def __init__(self, folder: Path, **options: object) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self._folder = folder
        self._options = {"port": self.port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "yes"}
        self._options |= {"appendfsync": "always", "maxmemory-policy": "noeviction"} | options
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers, be it with a refusal."""
        options = [str(part) for key, value in self._options.items() for part in (f"--{key}", value)]
        with (self._folder / "redis.log").open("ab") as log:
            # A limit on the size of its files shall fail a write, not end it: SIGXFSZ stays ignored, as Python has it.
            command = [str(find_server()), *options]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, restore_signals=False)
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert self.process.poll() is None, "the server ended while starting"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.002)

    def _answers(self) -> bool:
        try:
            with connect(self.url) as client:
                return bool(client.ping())
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False

    def stop(self) -> None:
        """Kill the server; every connection to it is closed."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self, empty: bool = False) -> None:
        """Kill the server and start it again, with what it had or, `empty`, without."""
        self.stop()
        if empty:
            for path in (self._folder / "appendonlydir").iterdir():
                path.unlink()
        self.start()
