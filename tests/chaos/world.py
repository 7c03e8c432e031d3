"""Every process of two runs, as `lasro up` would keep them, with a proxy on each way between them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import httpx

from lasro.redis_store.embedded import EmbeddedRedis
from lasro.service.child_process import PARENT_VARIABLE
from lasro.wire import Protocol, RewardSpec
from lasro_client.services.reward_client import RewardClient
from lasro_client.services.supervisor import Child, Supervisor
from tests.chaos.disk import Disk
from tests.chaos.proxy import Link, Proxies
from tests.chaos.workload import MORTAL, REWARD, RUNS
from tests.support.redis_clock import can_set_clock, clock_environment, set_clock

START_S = 240.0
READY_S = 15.0
SERVICES = {
    "reward_api": ["lasro_reward_api"],
    "worker-1": ["lasro_reward_api", "worker"],
    "worker-2": ["lasro_reward_api", "worker"],
    "surrogate_trainer": ["lasro_surrogate_trainer"],
    "scorer": ["tests.chaos.scorer"],
}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "LASRO_TORCH_THREADS": "1",
    "LASRO_ALLOWED_NETWORKS": "127.0.0.0/8",
    "LASRO_STALE_AFTER_S": "3",
    "LASRO_CIRCUIT_FAILURES": "20",
    "LASRO_CIRCUIT_OPEN_S": "1",
    "LASRO_REDO_S": "2",
    "LASRO_KEEP_VERSIONS_S": "5",
}
"""Times are short so that what happens after them happens often."""


class World:
    """Context manager. `links` are ways that faults can be put on, `children` processes that can be killed."""

    def __init__(self, folder: Path, broken: str | None, patience_s: float) -> None:
        self.folder, self.broken, self.patience_s = folder, broken, patience_s
        self.clock = folder / "clock"
        self.disk = Disk(folder / "disk")
        self.data_dir = self.disk.folder / "trainer"
        self.redis_clock = folder / "redis-clock"
        own_clock = clock_environment(folder) if can_set_clock() else {}
        self.redis = EmbeddedRedis(self.disk.folder / "redis", environment=own_clock)
        self.links: dict[str, Link] = {}
        self.children: dict[str, Child] = {}
        self._urls: dict[str, str] = {}
        self._supervisor, self._proxies, self._exit = Supervisor(), Proxies(), ExitStack()

    def __enter__(self) -> World:
        for clock in (self.clock, self.redis_clock):
            set_clock(clock, 0.0)
        self._exit.callback(self.disk.close)
        self._exit.enter_context(self._proxies)
        self._exit.callback(self.redis.release)
        self._exit.callback(self._supervisor.stop)
        try:
            self._start()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def _start(self) -> None:
        self.links["redis"] = self._proxies.to_socket(str(self.redis.folder / "redis.sock"))
        self._watch([Child("redis", self.redis.spawn, self.redis.log_path)])
        self._wait_for("redis")
        self._watch([self._service(name, module) for name, module in SERVICES.items()])
        for name, service in (("api", "reward_api"), ("trainer", "surrogate_trainer"), ("scorer", "scorer")):
            self.links[name] = self._proxies.to_port(int(self._urls[service].rpartition(":")[2]))
        for name in SERVICES:
            self._wait_for(name)
        with RewardClient(self._urls["reward_api"]) as api:
            for name, path in ((REWARD, ""), (MORTAL, MORTAL)):
                url = f"http://127.0.0.1:{self.links['scorer'].port}/{path}"
                api.register(RewardSpec(name=name, url=url, protocol=Protocol.NATIVE, timeout_s=2.0, concurrency=4))
        time.sleep(1.5)  # until the registration is safe from a power cut
        self._watch([self._producer(run) for run in RUNS])
        for run in RUNS:
            self._wait_for(f"producer-{run}")
        self._supervisor.started()

    def _watch(self, children: list[Child]) -> None:
        self.children |= {child.name: child for child in children}
        self._supervisor.watch(children)

    def _service(self, name: str, module: list[str]) -> Child:
        listener = self._exit.enter_context(socket.create_server(("127.0.0.1", 0), backlog=256))
        self._urls[name] = f"http://127.0.0.1:{listener.getsockname()[1]}"
        environment = {
            "LASRO_LISTEN_FD": str(listener.fileno()),
            "LASRO_REDIS_URL": f"redis://127.0.0.1:{self.links['redis'].port}",
            "LASRO_DATA_DIR": str(self.data_dir),
        }
        return self._child(name, module, environment, [listener.fileno()])

    def _producer(self, run: str) -> Child:
        urls = [f"http://127.0.0.1:{self.links[name].port}" for name in ("api", "trainer")]
        arguments = [str(self.folder), run, *urls, str(self.patience_s)]
        return self._child(f"producer-{run}", ["tests.chaos.producer", *arguments], {}, [])

    def _child(self, name: str, module: list[str], environment: Mapping[str, str], fds: list[int]) -> Child:
        complete = {**os.environ, **ENVIRONMENT, **environment, PARENT_VARIABLE: str(os.getpid())}
        complete |= {"CHAOS_CLOCK": str(self.clock), "CHAOS_BREAK": self.broken or "", "CHAOS_FOLDER": str(self.folder)}
        complete.pop("LASRO_API_KEY", None)
        log_path = self.folder / f"{name}.log"

        def spawn() -> subprocess.Popen[bytes]:
            with log_path.open("ab") as log:
                command = [
                    sys.executable,
                    "-m",
                    "lasro.service.child_process",
                    sys.executable,
                    "-m",
                    "tests.chaos.child",
                    *module,
                ]
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=complete,
                    pass_fds=fds,
                    start_new_session=True,
                )

        return Child(name, spawn, log_path)

    # --- what is there ---------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises UnreachableError once a process was given up."""
        self._supervisor.check()

    def pid(self, name: str) -> int | None:
        """Of the process that runs now."""
        process = self.children[name].process
        return process.pid if process is not None and process.poll() is None else None

    def signal(self, name: str, number: signal.Signals) -> bool:
        """Whether there was a process to get it."""
        pid = self.pid(name)
        if pid is not None:
            os.kill(pid, number)
        return pid is not None

    def works(self, name: str) -> bool:
        """Whether the process answers, or has begun its work."""
        pid = self.pid(name)
        if pid is None:
            return False
        if name == "redis":
            return self.redis.answers()
        if name in SERVICES:
            try:
                path = "/health/live" if name == "scorer" else "/health/ready"
                return httpx.get(self._urls[name] + path, timeout=READY_S, trust_env=False).status_code == 200
            except httpx.TransportError:
                return False
        path = self.folder / f"{name.removeprefix('producer-')}.pid"
        return path.exists() and path.read_text() == str(pid)

    def url(self, name: str) -> str:
        """Of a service, past its proxy."""
        return self._urls[name]

    def _wait_for(self, name: str) -> None:
        deadline = time.monotonic() + START_S
        while not self.works(name):
            self.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name}: not ready after {START_S:g} s; see {self.children[name].log_path}")
            time.sleep(0.05)
