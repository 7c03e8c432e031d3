"""Claims while Redis' wall clock is set: a dead worker's are taken over, a live one's are not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis_clock import can_set_clock, clock_environment, set_clock

from lasro.redis_store import keys
from lasro.redis_store.connection import connect, connect_async
from lasro.redis_store.embedded import EmbeddedRedis
from lasro.redis_store.work_stream import WorkStream

pytestmark = pytest.mark.skipif(not can_set_clock(), reason="needs a compiler, and a linker that preloads")
STALE_MS = 300
TWO_HOURS_S = 7200.0


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clock") / "redis-clock"


@pytest.fixture(scope="module")
def server(clock: Path) -> Iterator[EmbeddedRedis]:
    """With a clock of its own."""
    with EmbeddedRedis(clock.parent / "redis", environment=clock_environment(clock.parent)) as started:
        yield started


@pytest.fixture
def client(server: EmbeddedRedis, clock: Path) -> Iterator[redis.Redis]:
    set_clock(clock, 0.0)
    with connect(server.url) as connected:
        connected.flushall()
        yield connected


def add_entries(client: redis.Redis, count: int) -> None:
    for number in range(count):
        client.xadd(keys.WORK, {"run": "r", "group": f"g{number}"})


async def step(client: redis.Redis, clock: Path, step_s: float) -> None:
    """Set the clock, and wait until Redis goes by it: a read that blocks meanwhile would wait for the old time."""

    def shown_s() -> int:
        seconds, _ = client.time()  # pyright: ignore[reportGeneralTypeIssues]
        return int(seconds)

    before_s = shown_s()
    set_clock(clock, step_s)
    while abs(shown_s() - before_s) < abs(step_s) / 2:
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "unwatched"])
@pytest.mark.parametrize("step_s", [-TWO_HOURS_S, TWO_HOURS_S], ids=["back", "forward"])
def test_a_dead_workers_claims_are_taken_over(
    server: EmbeddedRedis, client: redis.Redis, clock: Path, step_s: float, watched: bool
) -> None:
    """Bug: Redis' clock was set back by two hours, and nobody was given a dead worker's four groups before it was two
    hours later; whether the worker that takes them over saw the step or was started after it."""
    add_entries(client, 4)

    async def taken() -> set[str]:
        async with connect_async(server.url) as one, connect_async(server.url) as two:
            dead, other = WorkStream(one), WorkStream(two)
            assert len(await dead.take("dead", 4, 0, STALE_MS)) == 4
            if watched:
                assert await other.take("other", 4, 1, STALE_MS) == []
            await step(client, clock, step_s)
            found: set[str] = set()
            deadline = time.monotonic() + 5
            while len(found) < 4 and time.monotonic() < deadline:
                found |= {entry.id for entry in await other.take("other", 4, 20, STALE_MS)}
            return found

    assert len(asyncio.run(taken())) == 4


def test_a_live_workers_claims_are_left_alone(server: EmbeddedRedis, client: redis.Redis, clock: Path) -> None:
    """Bug: Redis' clock was set forward by two hours, and every claim looked two hours old: groups were taken from
    workers that lived, scored twice and paid for twice."""
    add_entries(client, 1)

    async def taken() -> list[str]:
        async with connect_async(server.url) as one, connect_async(server.url) as two:
            live, other = WorkStream(one), WorkStream(two)
            [held] = await live.take("live", 1, 0, STALE_MS)
            assert await other.take("other", 1, 1, STALE_MS) == []
            set_clock(clock, TWO_HOURS_S)
            await asyncio.sleep(0.02)
            found = []
            for _ in range(8):
                found += await other.take("other", 1, STALE_MS // 4, STALE_MS)
                assert await live.keep("live", [held.id]) == set()
            return [entry.id for entry in found]

    assert asyncio.run(taken()) == []


def test_what_was_given_back_is_taken_at_once(server: EmbeddedRedis, client: redis.Redis, clock: Path) -> None:
    """Bug: with the clock set back by two days, what a worker had given back on SIGTERM waited as if it were held."""
    add_entries(client, 1)

    async def taken() -> int:
        async with connect_async(server.url) as one, connect_async(server.url) as two:
            ending, other = WorkStream(one), WorkStream(two)
            await ending.take("ending", 1, 0, STALE_MS)
            await ending.leave("ending")
            set_clock(clock, -24 * TWO_HOURS_S)
            return len(await other.take("other", 1, 0, 60_000))

    assert asyncio.run(taken()) == 1
