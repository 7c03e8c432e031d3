"""Groups under faults: scoring cut short, Redis away, the service restarted while a client waits."""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import redis
import redis.asyncio
import uvicorn
from fastapi import FastAPI, Request
from PIL import Image
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from lasro import wire
from lasro.errors import TimeoutExceededError, UnreachableError
from lasro.redis_store import keys
from lasro.redis_store.clients import AsyncClient
from lasro.redis_store.connection import connect, connect_async
from lasro.redis_store.embedded import EmbeddedRedis
from lasro.redis_store.group_queue import Claim, GroupQueue
from lasro.redis_store.registry import RewardRegistry
from lasro.redis_store.sample_stream import SampleStream
from lasro.wire import GroupState, GroupSubmission, Protocol, RewardSpec, ScoredItem
from lasro_client.services.reward_client import RewardClient
from lasro_reward_api.admission import Admission, Limits
from lasro_reward_api.app import create_app
from lasro_reward_api.cache import ScoreCache
from lasro_reward_api.endpoints.pool import EndpointPool
from lasro_reward_api.metrics import RewardMetrics
from lasro_reward_api.scoring import Scorer
from lasro_reward_api.settings import RewardApiSettings
from lasro_reward_api.worker import score_groups

RUN = "worker-tests"


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def submission(index: int) -> GroupSubmission:
    return GroupSubmission(
        group_id=f"g{index}",
        round=0,
        index=index,
        prompt="p",
        policy_version=0,
        rewards=["half"],
        stages=[1, 2],
        images=[png(index), png(index + 100)],
        latents=wire.pack_tensors({"latents": np.full((2, 4, 2, 2), index, np.float16)}),
    )


class HalfScorer:
    """Scores everything 0.5 after `delay_s`; counts images."""

    def __init__(self, serve: Callable[[ASGIApp], str], delay_s: float = 0.0) -> None:
        self.images, self.delay_s = 0, delay_s
        app = FastAPI()
        app.post("/")(self.score)
        self.spec = RewardSpec(name="half", url=f"{serve(app)}/", protocol=Protocol.NATIVE, cache=False)

    async def score(self, request: Request) -> dict[str, list[float]]:
        count = len((await request.json())["images"])
        self.images += count
        await asyncio.sleep(self.delay_s)
        return {"scores": [0.5] * count}


def scorer_of(client: redis.asyncio.Redis, registry: RewardRegistry, endpoints: EndpointPool) -> Scorer:
    admission = Admission(Limits(1, 1, 1), lambda name, count: None)
    return Scorer(registry, endpoints, ScoreCache(client, 60), admission, 1 << 20)


class DiesBeforeFinish(GroupQueue):
    """The crash that matters most: all is scored and paid for, nothing is delivered."""

    def __init__(self, client: AsyncClient) -> None:
        super().__init__(client)
        self.reached = asyncio.Event()

    async def finish(self, claim: Claim, items: list[ScoredItem]) -> bool:
        self.reached.set()
        await asyncio.Event().wait()
        return False

    async def leave(self, consumer: str) -> None:
        """A killed worker says no goodbye."""


def test_a_crash_between_scoring_and_delivery_delivers_once(
    redis_url: str, redis_client: redis.Redis, serve: Callable[[ASGIApp], str]
) -> None:
    """Bug: a worker killed after scoring loses the group, or the one that takes over delivers it twice."""
    scorer = HalfScorer(serve)

    async def body() -> None:
        settings = RewardApiSettings(redis_url=redis_url, allowed_networks="127.0.0.0/8")  # pyright: ignore[reportArgumentType]
        async with connect_async(redis_url) as client:
            registry, endpoints = RewardRegistry(client), EndpointPool(settings, RewardMetrics(CollectorRegistry()))
            await registry.put(scorer.spec, replace=True)
            scoring = scorer_of(client, registry, endpoints)
            dying, queue = DiesBeforeFinish(client), GroupQueue(client)
            for index in range(3):
                await queue.add(RUN, submission(index), 2)
            first = asyncio.create_task(score_groups(dying, scoring, "first", 3, 30.0))
            await asyncio.wait_for(dying.reached.wait(), 10)
            await asyncio.sleep(0.1)
            first.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await first
            assert redis_client.xlen(keys.samples(RUN)) == 0
            second = asyncio.create_task(score_groups(queue, scoring, "second", 2, 0.3))
            while redis_client.xlen(keys.samples(RUN)) < 3:
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.5)
            second.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await second
            await endpoints.aclose()

    asyncio.run(asyncio.wait_for(body(), 30))
    delivered = [sample.group_id for _, sample in SampleStream(redis_client, RUN).read(10)]
    assert sorted(delivered) == ["g0", "g1", "g2"]
    assert redis_client.xlen(keys.WORK) == 0
    assert redis_client.hget(keys.calls(RUN), "reserved") == b"0"
    assert redis_client.hget(keys.calls(RUN), "spent") == str(scorer.images).encode()


def test_a_slow_group_is_not_taken_from_a_living_worker(
    redis_url: str, redis_client: redis.Redis, serve: Callable[[ASGIApp], str]
) -> None:
    """Bug: whatever takes longer than the takeover time is scored, and paid for, again and again."""
    scorer = HalfScorer(serve, delay_s=3.0)

    async def body() -> None:
        settings = RewardApiSettings(redis_url=redis_url, allowed_networks="127.0.0.0/8")  # pyright: ignore[reportArgumentType]
        async with connect_async(redis_url) as client:
            registry, endpoints, queue = (
                RewardRegistry(client),
                EndpointPool(settings, RewardMetrics(CollectorRegistry())),
                GroupQueue(client),
            )
            await registry.put(scorer.spec, replace=True)
            scoring = scorer_of(client, registry, endpoints)
            await queue.add(RUN, submission(0), 2)
            workers = [asyncio.create_task(score_groups(queue, scoring, name, 2, 1.5)) for name in ("a", "b")]
            while await queue.is_queued(RUN, "g0"):
                await asyncio.sleep(0.02)
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            await endpoints.aclose()

    asyncio.run(asyncio.wait_for(body(), 30))
    assert scorer.images == 2


class SwallowsCancellation(GroupQueue):
    """What redis-py does when a cancellation meets a reply."""

    async def claim(self, consumer: str, count: int, block_ms: int, stale_ms: int) -> list[Claim]:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return []

    async def keep(self, consumer: str, entry_ids: list[str]) -> set[str]:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return set()


def test_the_worker_ends_though_its_cancellation_is_swallowed(redis_url: str) -> None:
    """Bug: on SIGTERM the service hangs until it is killed, and goes on claiming groups that it will never score."""

    async def body() -> None:
        settings = RewardApiSettings(redis_url=redis_url)  # pyright: ignore[reportArgumentType]
        async with connect_async(redis_url) as client:
            registry, endpoints = RewardRegistry(client), EndpointPool(settings, RewardMetrics(CollectorRegistry()))
            scoring = scorer_of(client, registry, endpoints)
            worker = asyncio.create_task(score_groups(SwallowsCancellation(client), scoring, "swallower", 2, 0.03))
            await asyncio.sleep(0.2)
            worker.cancel()
            await asyncio.wait([worker], timeout=10)
            assert worker.done()

    asyncio.run(asyncio.wait_for(body(), 30))


class Restartable:
    """The reward API on a port that stays the same, to be stopped and started."""

    def __init__(self, settings: RewardApiSettings) -> None:
        self._settings, self.port = settings, 0

    def start(self) -> str:
        config = uvicorn.Config(
            create_app(self._settings), port=self.port, log_level="warning", ws="none", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.005)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


def test_a_waiting_client_outlives_restarts_of_the_service_and_of_redis(
    tmp_path: Path, serve: Callable[[ASGIApp], str]
) -> None:
    """Bug: a restart ends the run, loses its groups, or has them trained on twice."""
    scorer = HalfScorer(serve, delay_s=0.3)
    groups = [submission(index) for index in range(8)]
    results: dict[str, wire.GroupStatus] = {}
    with EmbeddedRedis(tmp_path) as server:
        settings = RewardApiSettings(
            redis_url=server.url,  # pyright: ignore[reportArgumentType]
            allowed_networks="127.0.0.0/8",
            stale_after_s=0.5,
            groups_at_once=2,
        )
        service = Restartable(settings)
        with RewardClient(service.start(), timeout_s=5) as api:
            api.register(scorer.spec)
            waiting = threading.Thread(target=lambda: results.update(api.wait_scored(RUN, groups, timeout_s=60)))
            waiting.start()
            time.sleep(0.5)
            service.stop()
            server.stop()
            time.sleep(0.3)
            assert not api.ready()
            server.start()
            service.start()
            waiting.join(60)
            assert not waiting.is_alive()
        service.stop()
        with connect(server.url) as client:
            delivered = [sample.group_id for _, sample in SampleStream(client, RUN).read(50)]
    assert sorted(delivered) == sorted(results) == [group.group_id for group in groups]
    assert {status.state for status in results.values()} == {GroupState.SCORED}


def test_a_group_the_service_forgot_is_submitted_again(
    redis_url: str, redis_client: redis.Redis, serve: Callable[[ASGIApp], str]
) -> None:
    """Bug: what Redis lost with its last second is waited for until the timeout."""
    scorer = HalfScorer(serve)
    settings = RewardApiSettings(redis_url=redis_url, allowed_networks="127.0.0.0/8")  # pyright: ignore[reportArgumentType]
    with RewardClient(serve(create_app(settings))) as api:
        group = submission(0)
        results: dict[str, wire.GroupStatus] = {}
        with pytest.raises(LookupError):
            api.submit(RUN, group)
        waiting = threading.Thread(target=lambda: results.update(api.wait_scored(RUN, [group], timeout_s=20)))
        scorer.delay_s = 0.4
        api.register(scorer.spec, replace=True)
        waiting.start()
        time.sleep(0.3)
        redis_client.delete(keys.group(RUN, "g0"))
        waiting.join(30)
        assert results["g0"].state is GroupState.SCORED


def test_waiting_ends_at_its_deadline() -> None:
    """Bug: a client waits for ever for a service that is not there, or for a reward that never answers."""
    with RewardClient("http://127.0.0.1:1", timeout_s=1) as api:
        assert not api.ready()
        started = time.monotonic()
        with pytest.raises(UnreachableError, match="cannot be reached"):
            api.wait_scored(RUN, [submission(0)], timeout_s=0.5)
        assert time.monotonic() - started < 5


def test_a_group_that_is_not_scored_in_time_is_said_to_be_late(
    redis_url: str, redis_client: redis.Redis, serve: Callable[[ASGIApp], str]
) -> None:
    """Bug: an unscored group is returned as if it were scored."""
    scorer = HalfScorer(serve, delay_s=2.0)
    settings = RewardApiSettings(redis_url=redis_url, allowed_networks="127.0.0.0/8")  # pyright: ignore[reportArgumentType]
    with RewardClient(serve(create_app(settings))) as api:
        api.register(scorer.spec, replace=True)
        with pytest.raises(TimeoutExceededError, match="not scored in time"):
            api.wait_scored(RUN, [submission(0)], timeout_s=0.5)
