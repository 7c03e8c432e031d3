"""The processes that are measured, each of its own: embedded Redis, the reward API, and the apps beside it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import httpx

from lasro.redis_store.embedded import EmbeddedRedis
from lasro.service.child_process import PARENT_VARIABLE, last_log_line

START_S = 60.0
APPS = ("bare", "fastapi", "scorer")


@dataclass(frozen=True)
class Service:
    url: str
    pid: int


class DistributedContext:
    """Context manager; ends all that it started."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._exit = folder, ExitStack()
        self.redis_url = ""
        self.api = Service("", 0)
        self.apps: dict[str, Service] = {}

    def __enter__(self) -> DistributedContext:
        with ExitStack() as started:
            self._exit = started
            self.redis_url = started.enter_context(EmbeddedRedis(self._folder)).url
            self.api = self._start("reward_api", ["lasro_reward_api"], "/health/ready")
            self.apps = {name: self._start(name, ["benchmarks.rewards.apps", name], "/1/0") for name in APPS}
            self._exit = started.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._exit.close()

    def _start(self, name: str, module: list[str], path: str) -> Service:
        """A service on a free loopback port; returns once it answers."""
        listener = self._exit.enter_context(socket.create_server(("127.0.0.1", 0), backlog=256))
        environment = os.environ | {
            PARENT_VARIABLE: str(os.getpid()),
            "LASRO_LISTEN_FD": str(listener.fileno()),
            "LASRO_REDIS_URL": self.redis_url,
            "LASRO_ALLOWED_NETWORKS": "127.0.0.0/8",
        }
        log_path = self._folder / f"{name}.log"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *module],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=[listener.fileno()],
            )
        self._exit.callback(_end, process)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        _wait_for(url + path, process, log_path)
        return Service(url, process.pid)


def _wait_for(url: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline_s = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            if httpx.get(url, timeout=START_S, trust_env=False).status_code < 500:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"{url} does not answer: {last_log_line(log_path)} ({log_path})")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
