"""Every service of a run on this machine: embedded Redis, reward API, workers, surrogate trainer, served rewards.

with LocalStack(Path("runs/demo/services"), config.rewards) as stack:
    reward_client = RewardClient(stack.reward_api, ...)

Services are child processes on free loopback ports, never imports. What dies is started again; nothing is left
running afterwards, whatever ends this process. The trainer alone may be a thread here, over a model that is loaded.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from lasro.config import RewardSettings
from lasro.config.rewards import REGISTERED
from lasro.errors import NotFoundError, StorageError, TimeoutExceededError
from lasro.redis_store.embedded import EmbeddedRedis
from lasro.redis_store.url import check_url
from lasro.service.api_key import api_key_from_environment
from lasro.service.child_process import PARENT_VARIABLE, cores
from lasro.wire import Protocol, RewardInfo, RewardSpec
from lasro_client.services import http
from lasro_client.services.retry import with_retry
from lasro_client.services.supervisor import Child, Supervisor

if TYPE_CHECKING:
    from lasro_client.services.in_process_trainer import InProcessTrainer  # torch, for which `lasro up` does not wait

LOOPBACK = "127.0.0.0/8,::1/128"
REDIS_START_S = 20.0
FIRST_READY_S, LONGEST_READY_S = 1.0, 15.0
"""Waits for one answer: short at first, to notice soon what died; a large model's check may take the trainer 10 s."""
BUILT_IN_REWARDS = (
    RewardSettings(name="attribute-binding", serve="lasro_rewards.attribute_binding:attribute_binding"),
    RewardSettings(name="jpeg-compressibility", serve="lasro_rewards.jpeg:compressibility"),
    RewardSettings(name="jpeg-incompressibility", serve="lasro_rewards.jpeg:incompressibility"),
)
# A thread pool per process on all cores would have them strangle one another; only the trainer takes all.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
ONE_THREAD: dict[str, str | None] = dict.fromkeys(THREAD_VARIABLES, "1")
# The key is for the two services. Rewards here are reached through the API only, which holds no key for them.
REWARD_ENVIRONMENT = {**ONE_THREAD, "LASRO_API_KEY": None}


class LocalStack:
    """Context manager; `reward_api`, `surrogate_trainer` and `redis` are URLs once it is entered, and `registered` the
    rewards that it registered.

    `folder` keeps logs (`*.log`), Redis data and the trainer's runs; entered again, it goes on from there.
    Rewards with `serve` are served and registered. `trainer=False` leaves the surrogate trainer out, which otherwise
    has threads for this share of all cores (`trainer_cores`); where `in_process` is given, that one is started in its
    place, without a process. `workers` processes score queued groups beside the API.
    LASRO_REDIS_URL replaces the embedded Redis, LASRO_API_KEY protects both services.
    """

    def __init__(
        self,
        folder: Path,
        rewards: Sequence[RewardSettings] = (),
        trainer: bool = True,
        trainer_cores: float = 1.0,
        workers: int = 0,
        start_timeout_s: float = 180.0,
        in_process: InProcessTrainer | None = None,
    ) -> None:
        self.folder = folder.resolve()
        self.start_timeout_s = start_timeout_s
        self.reward_api = self.surrogate_trainer = self.redis = ""
        self.registered: list[RewardSpec] = []
        self._with_trainer, self._worker_count, self._in_process = trainer, workers, in_process
        self._trainer_threads = max(1, int(trainer_cores * cores()))
        self._served = [reward for reward in rewards if reward.serve is not None]
        self._api_key = api_key_from_environment()
        self._embedded: EmbeddedRedis | None = None
        self._listeners: list[socket.socket] = []
        self._supervisor = Supervisor()

    def __enter__(self) -> LocalStack:
        try:
            self._start()
        except BaseException:  # Ctrl-C while starting must not leave processes behind either
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> None:
        """Raise UnreachableError when a service died for good."""
        self._supervisor.check()
        if self._in_process is not None:
            self._in_process.check()

    def close(self) -> None:
        """End every process, within 10 s. A trainer in this one comes before them, as long as its step takes."""
        if self._in_process is not None:
            self._in_process.stop()
        self._supervisor.stop()
        if self._embedded is not None:
            self._embedded.release()
        for listener in self._listeners:
            listener.close()

    def _start(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.folder}: cannot be made ({error.strerror}); choose another folder") from error
        deadline = time.monotonic() + self.start_timeout_s
        given = os.environ.get("LASRO_REDIS_URL")
        self.redis = check_url(given) if given else self._start_redis()
        reward_api, self.reward_api = self._service("reward_api", ["lasro_reward_api"], ONE_THREAD)
        children, health = [reward_api], [self.reward_api + "/health/ready"]
        if self._in_process is not None:
            log_path = self.folder / "surrogate_trainer.log"
            self.surrogate_trainer = self._in_process.start(self.redis, self._trainer_folder, log_path)
        elif self._with_trainer:
            trainer, self.surrogate_trainer = self._trainer()
            children.append(trainer)
        if self.surrogate_trainer:
            health.append(self.surrogate_trainer + "/health/ready")
        for number in range(1, self._worker_count + 1):
            worker, url = self._service(f"worker-{number}", ["lasro_reward_api", "worker"], ONE_THREAD)
            children.append(worker)
            health.append(url + "/health/ready")
        urls = {}
        for reward in self._served:
            assert reward.serve is not None
            path = os.pathsep.join(filter(None, [str(reward.import_path), os.environ.get("PYTHONPATH")]))
            environment = {**REWARD_ENVIRONMENT, "PYTHONPATH": path}
            child, urls[reward.name] = self._service(
                f"reward-{reward.name}", ["lasro.reward_sdk", reward.serve], environment
            )
            children.append(child)
            health.append(urls[reward.name] + "/health/live")
        self._supervisor.watch(children)
        for url in health:
            self._wait_for(url, deadline)
        self._supervisor.started()
        with_retry(lambda: self._register(urls), deadline)

    @property
    def _trainer_folder(self) -> Path:
        return self.folder / "surrogate_trainer"

    def _trainer(self) -> tuple[Child, str]:
        threads = os.environ.get("LASRO_TORCH_THREADS", str(self._trainer_threads))
        environment = {"LASRO_TORCH_THREADS": threads, "LASRO_DATA_DIR": str(self._trainer_folder)}
        return self._service("surrogate_trainer", ["lasro_surrogate_trainer"], environment)

    def _start_redis(self) -> str:
        redis = self._embedded = EmbeddedRedis(self.folder)
        self._supervisor.watch([Child("redis", redis.spawn, redis.log_path)])
        deadline = time.monotonic() + REDIS_START_S
        while not redis.answers():
            self.check()
            if time.monotonic() > deadline:
                raise TimeoutExceededError(f"redis: not ready after {REDIS_START_S:.0f} s; see {redis.log_path}")
            time.sleep(0.02)
        return redis.url

    def _service(self, name: str, module: list[str], environment: Mapping[str, str | None]) -> tuple[Child, str]:
        """A child that listens on a free port of its own, and its URL.

        The socket is made here and inherited: the port cannot be taken by another, and callers of a service that
        is being started (again) wait in its queue instead of being refused.
        """
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self._listeners.append(listener)
        allowed = ",".join(filter(None, [LOOPBACK, os.environ.get("LASRO_ALLOWED_NETWORKS")]))
        variables = {
            **os.environ,
            **environment,
            PARENT_VARIABLE: str(os.getpid()),
            "LASRO_LISTEN_FD": str(listener.fileno()),
            "LASRO_REDIS_URL": self.redis,
            "LASRO_ALLOWED_NETWORKS": allowed,
        }
        complete = {key: value for key, value in variables.items() if value is not None}
        log_path = self.folder / f"{name}.log"

        def spawn() -> subprocess.Popen[bytes]:
            with log_path.open("ab") as log:
                return subprocess.Popen(
                    [sys.executable, "-m", "lasro.service.child_process", sys.executable, "-m", *module],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=complete,
                    pass_fds=[listener.fileno()],
                    start_new_session=True,  # Ctrl-C in the terminal reaches only the client, which ends the rest
                )

        return Child(name, spawn, log_path, listener.close), f"http://127.0.0.1:{listener.getsockname()[1]}"

    def _wait_for(self, url: str, deadline: float) -> None:
        patience_s = FIRST_READY_S
        while True:
            self.check()
            try:
                response = httpx.get(url, timeout=patience_s, trust_env=False)
                if response.status_code == 200:
                    return
                reason = response.text[:200]
            except httpx.TransportError as error:
                patience_s = min(2 * patience_s, LONGEST_READY_S)
                reason = str(error) or type(error).__name__
            if time.monotonic() > deadline:
                raise TimeoutExceededError(
                    f"{url}: not healthy after {self.start_timeout_s:.0f} s ({reason}); see {self.folder}/*.log"
                )
            time.sleep(0.1)

    def _register(self, urls: dict[str, str]) -> None:
        """Make the API call these rewards where they listen now; one already registered so keeps its version."""
        self.registered.clear()
        with http.connect(self.reward_api, self._api_key) as api:
            for name, url in urls.items():
                spec = RewardSpec(name=name, url=url + "/", protocol=Protocol.NATIVE, **self._settings_of(name))
                self.registered.append(spec)
                try:
                    info = RewardInfo.model_validate_json(http.send(api, "GET", f"/v1/rewards/{name}").content)
                except NotFoundError:
                    http.send(api, "POST", "/v1/rewards", json=spec.model_dump(mode="json"))
                    continue
                if any(getattr(info, field) != getattr(spec, field) for field in ("url", "protocol", *REGISTERED)):
                    http.send(api, "PUT", f"/v1/rewards/{name}", json=spec.model_dump(mode="json"))

    def _settings_of(self, name: str) -> dict[str, Any]:
        return next(reward.registered for reward in self._served if reward.name == name)
