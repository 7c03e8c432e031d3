"""What happens to a command whose connection is lost: sent again where that changes nothing, else reported."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from importlib import resources
from pathlib import Path

import pytest
import redis
from known_groups import SPEC, known_group

from lasro import wire
from lasro.errors import UnreachableError
from lasro.redis_store import keys
from lasro.redis_store.clients import AsyncClient
from lasro.redis_store.connection import connect, connect_async
from lasro.redis_store.embedded import EmbeddedRedis
from lasro.redis_store.group_queue import GroupQueue
from lasro.redis_store.lua import REPEATABLE_SCRIPTS
from lasro.redis_store.registry import RewardRegistry
from lasro.redis_store.sample_stream import SampleStream

RUN = "lossy"
SENT_ONCE = {
    "put_back_work": "a delivery would be taken back twice",
    "put_reward": "a new reward would be in use, by itself",
    "retry_group": "a group would be there no more that was just put back",
    "retry_sample": "so would a sample",
    "spend_calls": "calls would be counted twice",
    "take_work": "more would be claimed than the caller knows of",
}
"""Scripts that are not repeated, and what would happen."""
ITEMS = [wire.ScoredItem(scores={"known": wire.RewardValue(score=0.5, status=wire.Status.OK)}, total=0.5)] * 2


class LossyWay:
    """A port before a server's socket. Replies to what is sent next are `lost`: it was done, and nobody knows."""

    def __init__(self, socket_path: str) -> None:
        self.socket_path = socket_path
        self.lost = False

    async def __aenter__(self) -> str:
        """A URL."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(self.socket_path)
        pumps = [
            asyncio.create_task(self._pass_on(reader, server_writer, is_reply=False)),
            asyncio.create_task(self._pass_on(server_reader, writer, is_reply=True)),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for task in pumps:
            task.cancel()
        for each in (writer, server_writer):
            each.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_reply: bool) -> None:
        with suppress(OSError):
            while chunk := await reader.read(1 << 16):
                if is_reply and self.lost:
                    self.lost = False
                    return
                writer.write(chunk)
                await writer.drain()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.fixture
def admin(server: EmbeddedRedis) -> Iterator[redis.Redis]:
    """A connection past the lossy way, to an emptied server."""
    with connect(server.url) as client:
        client.flushall()
        yield client


def over_lossy_way(server: EmbeddedRedis, act: Callable[[AsyncClient, LossyWay], Awaitable[None]]) -> None:
    async def run() -> None:
        way = LossyWay(str(server.folder / "redis.sock"))
        async with way as url, connect_async(url) as client:
            await client.ping()
            await act(client, way)

    asyncio.run(run())


def test_every_script_is_classified() -> None:
    """Bug: a new script is sent again after a lost reply although it counts, or fails although it could be."""
    files = resources.files("lasro.redis_store").joinpath("scripts").iterdir()
    assert sorted(file.name for file in files) == sorted(f"{name}.lua" for name in (*REPEATABLE_SCRIPTS, *SENT_ONCE))


def test_a_group_whose_reply_was_lost_is_queued_and_delivered_once(server: EmbeddedRedis, admin: redis.Redis) -> None:
    """Bug: a lost reply of Redis was answered 502, or a client that repeats everything queued the group twice."""

    async def act(client: AsyncClient, way: LossyWay) -> None:
        queue = GroupQueue(client)
        await queue.add(RUN, known_group(0), 2)
        way.lost = True
        assert (await queue.add(RUN, known_group(1), 2)).state is wire.GroupState.QUEUED
        assert admin.xlen(keys.WORK) == 2
        first, second = await queue.claim("one", 2, 0, 10_000)
        await queue.finish(first, ITEMS)
        way.lost = True
        await queue.finish(second, ITEMS)
        way.lost = True
        assert await queue.keep("one", [first.entry_id]) == {first.entry_id}
        way.lost = True
        assert (await queue.status(RUN, "g1")).state is wire.GroupState.SCORED
        assert admin.xlen(keys.samples(RUN)) == 2

    over_lossy_way(server, act)


def test_what_counts_is_not_repeated(server: EmbeddedRedis, admin: redis.Redis) -> None:
    """Bug: a client that repeats every command counts reward calls twice, which ends a run before its budget does."""

    async def act(client: AsyncClient, way: LossyWay) -> None:
        queue = GroupQueue(client)
        await queue.add(RUN, known_group(0), 2)
        [claim] = await queue.claim("one", 1, 0, 10_000)
        await queue.spend(claim, 1)
        way.lost = True
        with pytest.raises(UnreachableError):
            await queue.spend(claim, 1)
        assert admin.hget(keys.calls(RUN), "spent") == b"2"

    over_lossy_way(server, act)


def test_reading_and_acknowledging_outlive_a_lost_reply(server: EmbeddedRedis, admin: redis.Redis) -> None:
    """Bug: the trainer's thread gave up what it had read when the connection broke under its acknowledgement."""

    async def act(client: AsyncClient, way: LossyWay) -> None:
        queue = GroupQueue(client)
        await queue.add(RUN, known_group(0), 2)
        [claim] = await queue.claim("one", 1, 0, 10_000)
        await queue.finish(claim, ITEMS)
        port = client.connection_pool.connection_kwargs["port"]
        with connect(f"redis://127.0.0.1:{port}") as blocking:
            stream = SampleStream(blocking, RUN)
            [(entry_id, _)] = await asyncio.to_thread(stream.read, 1)
            way.lost = True
            await asyncio.to_thread(stream.ack, [entry_id])
            way.lost = True
            assert await asyncio.to_thread(stream.lag) == 0
        assert admin.xlen(keys.samples(RUN)) == 0

    over_lossy_way(server, act)


def test_many_commands_at_once_wait_for_one_another(server: EmbeddedRedis) -> None:
    """Bug: of 600 requests at once 501 were answered 502, `Too many connections`: redis-py refuses the 101st."""

    async def ask() -> list[bool]:
        async with connect_async(server.url) as client:
            return await asyncio.gather(*(client.ping() for _ in range(400)))

    assert asyncio.run(ask()) == [True] * 400


def test_the_new_primary_is_found_after_a_failover(server: EmbeddedRedis, admin: redis.Redis, tmp_path: Path) -> None:
    """Bug: after a failover pooled connections led to the old primary for as long as the service ran, and each write
    was refused as to a read-only replica."""

    async def act(client: AsyncClient, way: LossyWay) -> None:
        registry = RewardRegistry(client)
        await registry.put(SPEC, replace=False)
        with EmbeddedRedis(tmp_path) as promoted:
            admin.execute_command("REPLICAOF", "127.0.0.1", "1")
            way.socket_path = str(promoted.folder / "redis.sock")
            assert (await registry.put(SPEC.model_copy(update={"name": "later"}), replace=False))[1] is True
            with connect(promoted.url) as there:
                assert there.hlen(keys.REWARDS) == 1

    try:
        over_lossy_way(server, act)
    finally:
        admin.execute_command("REPLICAOF", "NO", "ONE")
