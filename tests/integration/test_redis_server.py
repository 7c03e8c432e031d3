"""What is asked of a Redis server, and that keys and scripts live with a cluster."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.crc import key_slot

from lasro import wire
from lasro.errors import ConfigError, TimeoutExceededError
from lasro.redis_store import connection, keys
from lasro.redis_store.connection import connect, connect_async
from lasro.redis_store.dead_letters import dead_letters, drop, retry
from lasro.redis_store.embedded import EmbeddedRedis, find_server
from lasro.redis_store.group_queue import GroupQueue, Limits
from lasro.redis_store.runs import delete_run
from lasro.redis_store.sample_stream import SampleStream
from lasro.redis_store.server import check_server, refuse_unfit_redis, warnings_about

GOOD = {"redis_version": "7.2.4", "maxmemory": 0, "maxmemory_policy": "noeviction", "aof_enabled": 1}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"redis_version": "6.2.14"}, "got version 6.2.14, expected 7.0 or newer"),
        ({"maxmemory": 1 << 30, "maxmemory_policy": "allkeys-lru"}, "set maxmemory-policy noeviction"),
    ],
)
def test_servers_that_lose_groups_are_refused(changed: dict[str, Any], reason: str) -> None:
    """Bug: groups vanish one by one from a Redis that was set up as a cache."""
    with pytest.raises(ConfigError, match=reason):
        warnings_about(GOOD | changed)


@pytest.mark.parametrize("module", ["lasro_reward_api", "lasro_surrogate_trainer"])
def test_services_do_not_start_on_a_server_that_loses_groups(module: str, tmp_path: Path) -> None:
    """Bug: only the reward API looked, and a trainer with a Redis of other settings waited for samples in vain."""
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        client.config_set("maxmemory", 1 << 30)
        client.config_set("maxmemory-policy", "allkeys-lru")
        environment = os.environ | {"LASRO_REDIS_URL": server.url, "LASRO_DATA_DIR": str(tmp_path / "data")}
        command = [sys.executable, "-m", module]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1
    assert "set maxmemory-policy noeviction" in done.stderr


@pytest.mark.parametrize(
    ("changed", "warning"),
    [
        ({}, None),
        ({"redis_version": "255.255.255"}, None),
        ({"redis_version": "unknown"}, None),
        ({"maxmemory_policy": "allkeys-lru"}, "may evict queued groups"),
        ({"maxmemory": 1, "maxmemory_policy": "volatile-ttl"}, "may evict cached scores"),
        ({"aof_enabled": 0}, "lost when it restarts"),
        ({"aof_last_write_status": "err"}, "cannot write its append-only file"),
    ],
)
def test_what_endangers_the_queue_is_told(changed: dict[str, Any], warning: str | None) -> None:
    """Bug: a Redis without append-only file is taken as it is, and its restart ends all runs."""
    found = warnings_about(GOOD | changed)
    assert len(found) == (warning is not None)
    assert warning is None or warning in found[0]


def test_a_real_server_is_judged_by_its_own_words(redis_client: redis.Redis) -> None:
    """Bug: a setting is looked for under a name that no server uses, so that every server passes."""
    assert check_server(redis_client) == []
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert "may evict queued groups" in check_server(redis_client)[0]
        redis_client.config_set("maxmemory", "1gb")
        with pytest.raises(ConfigError, match="evicts keys"):
            check_server(redis_client)
    finally:
        redis_client.config_set("maxmemory", "0")
        redis_client.config_set("maxmemory-policy", "noeviction")


def test_a_server_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a call to a frozen Redis waits for ever, or a blocking read ends before its own time is up."""
    assert connection.MAX_BLOCK_MS / 1000 < connection.SOCKET_TIMEOUT_S
    monkeypatch.setattr(connection, "SOCKET_TIMEOUT_S", 0.5)
    with EmbeddedRedis(tmp_path) as server, connect(server.url) as client:
        stream = SampleStream(client, "hangs")
        assert stream.read(1) == []
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(TimeoutExceededError, match="Redis did not answer in time"):
                stream.read(1, 100)
            assert time.monotonic() - started < 5
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        assert stream.read(1) == []


def test_all_keys_share_one_slot() -> None:
    """Bug: a key without the hash tag makes every script that touches it fail in a cluster."""
    makers = [keys.calls, keys.groups, keys.samples, keys.dead_samples, keys.blobs]
    names = [value for name, value in vars(keys).items() if name.isupper()]
    names += [make("run") for make in makers] + [keys.group("run", "g"), keys.blob("run", "b")]
    encoded = [name.encode() for name in names if isinstance(name, str)] + [keys.score("reward", 1, bytes(32))]
    assert {key_slot(name) for name in encoded} == {key_slot(b"lasro")}
    code = [path.read_text("utf-8") for path in resources.files("lasro.redis_store").joinpath("scripts").iterdir()]
    assert not [text for text in code if re.search(r"\{lasro\}|[\"']run:", text)]


@pytest.fixture
def cluster_url(tmp_path: Path) -> Iterator[str]:
    """A cluster of one node that holds all slots."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        port, bus_port = one.getsockname()[1], two.getsockname()[1]
    options = {"port": port, "cluster-port": bus_port, "cluster-enabled": "yes", "dir": tmp_path, "bind": "127.0.0.1"}
    command = [str(find_server()), *(str(part) for key, value in options.items() for part in (f"--{key}", value))]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log) as server:
        try:
            with redis.Redis(port=port, socket_timeout=5) as client:
                wait_for(client)
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
                deadline = time.monotonic() + 20
                while cluster_state(client) != "ok":
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.kill()


def cluster_state(client: redis.Redis) -> str:
    info: Any = client.execute_command("CLUSTER INFO")
    return info["cluster_state"]


def wait_for(client: redis.Redis) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            client.ping()
            return
        except redis.ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def submission(name: str, size_bytes: int) -> wire.GroupSubmission:
    return wire.GroupSubmission(
        group_id=name, round=0, index=0, prompt="p", policy_version=0, rewards=["r"], stages=[1, 2],
        images=[b"a", b"b"], latents=b" " * size_bytes,
    )  # fmt: skip


def test_every_script_runs_in_a_cluster(cluster_url: str) -> None:
    """Bug: a script touches a key that it did not name, which a cluster refuses."""
    sizes = {"small": 0, "large": 70_000, "dead": 0, "dropped": 0, "waits": 0}
    score = wire.RewardValue(score=0.5, status=wire.Status.OK)
    items = [wire.ScoredItem(scores={"r": score}, total=0.5)] * 2

    async def queue_and_score() -> None:
        async with connect_async(cluster_url) as client:
            queue = GroupQueue(client)
            for name, size in sizes.items():
                await queue.add("run", submission(name, size), 2, Limits(100, 1))
            claims = await queue.claim("one", 4, 0, 10_000)
            await queue.keep("one", [claim.entry_id for claim in claims])
            await queue.spend(claims[0], 1)
            for claim in claims[:2]:
                await queue.finish(claim, items)
            for entry in await queue.take("one", 2, 0, 0):
                group_id = entry.fields[b"group"].decode()
                await queue.dead_letter(entry, "for a test", ("run", group_id))
            await queue.leave("one")

    asyncio.run(queue_and_score())
    with connect(cluster_url) as client:
        dead, dropped = dead_letters(client)
        assert retry(client, dead)
        drop(client, dropped)
        stream = SampleStream(client, "run")
        (first, _), (second, _) = stream.read(5)
        stream.dead_letter(first, "for a test")
        (sample,) = dead_letters(client)
        assert retry(client, sample)
        stream.ack([second])
        delete_run(client, "run")
        assert client.keys("*run:*") == []


def test_a_wrong_password_ends_a_service_and_no_answer_does_not(tmp_path: Path) -> None:
    """Bug: a service with a wrong password waits for ever, as if Redis were still starting."""
    with EmbeddedRedis(tmp_path) as server:
        refuse_unfit_redis(server.url)
        with connect(server.url) as client:
            client.config_set("requirepass", "another")
        with pytest.raises(ConfigError, match="Redis refuses the name or password in LASRO_REDIS_URL"):
            refuse_unfit_redis(server.url)
    refuse_unfit_redis(server.url)
