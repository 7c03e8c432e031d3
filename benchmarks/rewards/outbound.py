"""The reward API's own calls of an endpoint beside those of bare httpx, in one process and on one event loop.

Ours are everything between the images of a request and its scores: queue, encoding, circuit breaker, address guard,
limits, decoding, metrics. httpx posts the same bytes, encoded beforehand, and reads the answer.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
from prometheus_client import CollectorRegistry

from benchmarks.rewards.figures import Figure
from benchmarks.rewards.load import Load
from lasro import wire
from lasro.redis_store.registry import Registration
from lasro.service.serve import freeze_startup_objects
from lasro_reward_api.deadline import Caller, Deadline
from lasro_reward_api.endpoints.batching import Item
from lasro_reward_api.endpoints.pool import EndpointPool
from lasro_reward_api.metrics import RewardMetrics
from lasro_reward_api.settings import RewardApiSettings

ONE_CLIENT, CLIENT_EACH = "httpx, one client of 16 connections", "httpx, 16 clients of one connection"
OURS = "calls of a reward"
CONCURRENCY = 16
TIMEOUT_S = 30.0
Call = Callable[[int], Awaitable[None]]
"""One call by a worker, given its number."""


async def calling(url: str, images: list[bytes], repetitions: int, seconds: float) -> list[Figure]:
    """Calls of the endpoint at `url`, which scores so many images, sixteen at once."""
    freeze_startup_objects()
    loads = await compare(url, images, repetitions, seconds)
    rates = [Figure(name, "calls/s", [load.rate for load in each]) for name, each in loads.items()]
    times = [Figure(f"{name}: CPU", "ms/call", [load.cpu_ms for load in each]) for name, each in loads.items()]
    best = max((ONE_CLIENT, CLIENT_EACH), key=lambda name: statistics.median(load.rate for load in loads[name]))
    pairs = zip(loads[OURS], loads[best], strict=True)
    ratio = Figure(f"{OURS} / {best}", "", [ours.rate / limit.rate for ours, limit in pairs], at_least=0.8)
    p99 = Figure(f"{OURS}: p99", "ms", [load.quantile_ms(0.99) for load in loads[OURS]], at_most=50.0)
    return [*rates, ratio, p99, *times]


async def compare(url: str, images: list[bytes], repetitions: int, seconds: float) -> dict[str, list[Load]]:
    """Loads by arrangement, in turns, after one that warms up."""
    request = wire.NativeRequest(prompts=["p"] * len(images), images=images, metadata=[None] * len(images))
    body = request.model_dump_json().encode()
    async with AsyncExitStack() as stack:
        shared = await stack.enter_async_context(_client(CONCURRENCY))
        own = [await stack.enter_async_context(_client(1)) for _ in range(CONCURRENCY)]
        calls: dict[str, Call] = {
            ONE_CLIENT: lambda worker: _post(shared, url, body),
            CLIENT_EACH: lambda worker: _post(own[worker], url, body),
            OURS: await stack.enter_async_context(_ours(url, images)),
        }
        loads: dict[str, list[Load]] = {name: [] for name in calls}
        for repetition in range(repetitions + 1):
            for name, call in calls.items():
                load = await _load(call, seconds)
                if repetition:
                    loads[name].append(load)
    return loads


def _client(connections: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(limits=limits, timeout=TIMEOUT_S, trust_env=False)


async def _post(client: httpx.AsyncClient, url: str, body: bytes) -> None:
    answer = await client.post(url, content=body, headers={"Content-Type": "application/json"})
    answer.raise_for_status()


@asynccontextmanager
async def _ours(url: str, images: list[bytes]) -> AsyncIterator[Call]:
    settings = RewardApiSettings(allowed_networks="127.0.0.0/8")
    endpoints = EndpointPool(settings, RewardMetrics(CollectorRegistry()))
    spec = wire.RewardSpec(
        name="trivial", url=url, protocol=wire.Protocol.NATIVE, max_batch=len(images), concurrency=CONCURRENCY
    )
    endpoint = endpoints.get(Registration(spec, 1))
    items = [Item("p", image, None) for image in images]

    async def call(worker: int) -> None:
        outcomes = await endpoint.score(items, Caller(Deadline.after(TIMEOUT_S), f"request-{worker}"))
        failed = [outcome.call.error for (outcome,) in outcomes if outcome.call.status is not wire.Status.OK]
        assert not failed, failed

    yield call
    await endpoints.aclose()


async def _load(call: Call, seconds: float) -> Load:
    latencies_s: list[float] = []
    end_s = time.perf_counter() + seconds

    async def keep_calling(worker: int) -> None:
        while True:
            started_s = time.perf_counter()
            await call(worker)
            latencies_s.append(time.perf_counter() - started_s)
            if time.perf_counter() >= end_s:
                return

    cpu_s, started_s = time.process_time(), time.perf_counter()
    await asyncio.gather(*(keep_calling(worker) for worker in range(CONCURRENCY)))
    return Load(time.perf_counter() - started_s, time.process_time() - cpu_s, latencies_s)
