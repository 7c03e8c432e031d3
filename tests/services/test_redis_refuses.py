"""Both services while Redis takes no writes, and after it came back empty."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import redis
from known_groups import SPEC, known_group
from pages import DOCS
from redis_on_tcp import RedisOnTcp
from starlette.types import ASGIApp

from lasro import wire
from lasro.errors import ConfigError, NotFoundError
from lasro.redis_store import keys
from lasro.redis_store.connection import connect
from lasro.redis_store.server import refuse_unfit_redis
from lasro.wire import GroupState
from lasro_client.services.reward_client import RewardClient
from lasro_reward_api.app import create_app
from lasro_reward_api.scoring_process import create_worker
from lasro_reward_api.settings import RewardApiSettings, WorkerSettings

STATES = {
    "a read-only replica": (["REPLICAOF", "127.0.0.1", "1"], ["REPLICAOF", "NO", "ONE"]),
    "full": (["CONFIG", "SET", "maxmemory", "1mb"], ["CONFIG", "SET", "maxmemory", "0"]),
    "too few replicas": (
        ["CONFIG", "SET", "min-replicas-to-write", "1"],
        ["CONFIG", "SET", "min-replicas-to-write", "0"],
    ),
    "no right to write": (["ACL", "SETUSER", "service", "-@write"], ["ACL", "SETUSER", "service", "+@all"]),
    "no right to its keys": (
        ["ACL", "SETUSER", "service", "resetkeys", "~other:*"],
        ["ACL", "SETUSER", "service", "resetkeys", "~*"],
    ),
}
SAID = {
    "a read-only replica": "Redis takes no writes (You can't write against a read only replica.); it is a read-only",
    "full": "Redis takes no writes (command not allowed when used memory > 'maxmemory'.); free memory or disk",
    "too few replicas": "Redis takes no writes (NOREPLICAS Not enough good replicas to write.); bring",
    "no right to write": "Redis forbids the user in LASRO_REDIS_URL a command",
    "no right to its keys": "Redis forbids the user in LASRO_REDIS_URL a command",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisOnTcp]:
    """With a user `service`, as whom services log in."""
    with RedisOnTcp(tmp_path_factory.mktemp("redis-on-tcp"), appendfsync="everysec") as started:
        with connect(started.url) as admin:
            admin.execute_command("ACL", "SETUSER", "service", "on", ">secret", "~*", "+@all")
        yield started


@pytest.fixture(scope="module")
def service_url(server: RedisOnTcp) -> str:
    return server.url.replace("//", "//service:secret@")


@pytest.fixture(scope="module")
def api_url(service_url: str, serve: Callable[[ASGIApp], str]) -> str:
    return serve(create_app(RewardApiSettings.model_validate({"redis_url": service_url})))


@pytest.fixture(scope="module")
def worker_url(service_url: str, serve: Callable[[ASGIApp], str]) -> str:
    return serve(create_worker(WorkerSettings.model_validate({"redis_url": service_url})))


@contextmanager
def in_state(server: RedisOnTcp, state: str) -> Iterator[None]:
    enter, leave = STATES[state]
    with connect(server.url) as admin:
        admin.execute_command(*enter)
        try:
            yield
        finally:
            admin.execute_command(*leave)


def readiness(url: str) -> tuple[int, str]:
    answer = httpx.get(f"{url}/health/ready", timeout=30)
    return answer.status_code, answer.json().get("detail", "")


@pytest.mark.parametrize("state", STATES)
def test_a_service_is_not_ready_while_redis_takes_no_writes(
    server: RedisOnTcp, api_url: str, worker_url: str, state: str
) -> None:
    """Bug: readiness only read, and a service whose every group was refused with 507 was ready. Full memory stops only
    what adds to the queue: a worker that was not ready then could not empty it."""
    assert readiness(api_url) == (200, "")
    with in_state(server, state):
        status, detail = readiness(api_url)
        assert (status, SAID[state] in detail) == (503, True), detail
        assert readiness(worker_url)[0] == (200 if state == "full" else 503)
    assert readiness(api_url) == readiness(worker_url) == (200, "")


@pytest.mark.parametrize("state", STATES)
def test_only_what_waiting_does_not_mend_ends_a_service(server: RedisOnTcp, service_url: str, state: str) -> None:
    """Bug: a service whose Redis user may not write started, and was never ready; or one whose Redis was a replica for
    a moment, while another became the primary, did not start."""
    with in_state(server, state):
        if state.startswith("no right"):
            with pytest.raises(ConfigError, match="Redis forbids the user"):
                refuse_unfit_redis(service_url)
        else:
            refuse_unfit_redis(service_url)


def test_the_page_of_faults_says_so() -> None:
    """Bug: the documentation promises other words than the service has."""
    page = (DOCS / "faults.md").read_text(encoding="utf-8")
    assert not [said for said in SAID.values() if said.partition(";")[0] not in page]


@pytest.mark.skipif(sys.platform != "linux", reason="limits another process' files")
def test_a_full_disk_is_noticed(server: RedisOnTcp, api_url: str) -> None:
    """Bug: Redis' disk was full, nothing could be queued, and the service was ready."""
    assert server.process is not None
    pid = server.process.pid
    _, hard = before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        wait_until(lambda: readiness(api_url)[0] == 503)
        assert "Redis takes no writes (MISCONF" in readiness(api_url)[1]
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    wait_until(lambda: readiness(api_url)[0] == 200)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_readiness_writes_once_a_second_at_most(server: RedisOnTcp, api_url: str) -> None:
    """Bug: whoever asks for readiness in a loop makes the append-only file grow as fast as they ask."""
    with connect(server.url) as admin:
        admin.delete(keys.WRITE_PROBE)
        written = count_writes(admin)
        for _ in range(20):
            assert readiness(api_url)[0] == 200
        assert 1 <= count_writes(admin) - written <= 3
        assert 0 < admin.pttl(keys.WRITE_PROBE) <= 1000


def count_writes(admin: redis.Redis) -> int:
    info: Any = admin.info("persistence")
    return info["rdb_changes_since_last_save"]


def test_a_lost_reward_of_the_run_is_registered_again(
    server: RedisOnTcp, api_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Bug: Redis came back empty, and the run ended with 'not registered' although it had registered the reward."""
    other = SPEC.model_copy(update={"name": "other"})
    with RewardClient(api_url, own_rewards=[SPEC]) as run, caplog.at_level(logging.WARNING, "lasro"):
        for spec in (SPEC, other):
            run.register(spec, replace=True)
        assert run.reward("other").version == 1
        before, after = known_group(0), known_group(1)
        assert run.wait_scored("emptied", [before], 30)["g0"].state is GroupState.SCORED
        server.restart(empty=True)
        with connect(server.url) as admin:
            admin.execute_command("ACL", "SETUSER", "service", "on", ">secret", "~*", "+@all")
        # The trainer has not got the first one: it is posted again, too.
        scored = run.wait_scored("emptied", [before, after], 30)
        assert [status.state for status in scored.values()] == [GroupState.SCORED] * 2
        assert caplog.text.count("this run registers its rewards again") == 1
        with pytest.raises(NotFoundError, match=r"came back empty.*registered when this began.*`lasro rewards add`"):
            run.score(wire.ScoreRequest(prompts=["p"], images=[b"i"], rewards=["other"]))
