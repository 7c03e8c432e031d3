"""What every process that scores shares: the API, and the `lasro worker` processes beside it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from lasro.errors import ConfigError, StorageError, UnreachableError
from lasro.redis_store.connection import connect, connect_async
from lasro.redis_store.group_queue import GroupQueue
from lasro.redis_store.registry import DATA_LOST, RewardRegistry
from lasro.redis_store.server import check_server_async
from lasro.service.app import create_service
from lasro_reward_api.admission import Admission, Limits
from lasro_reward_api.cache import ScoreCache
from lasro_reward_api.endpoints.pool import EndpointPool
from lasro_reward_api.metrics import RewardMetrics
from lasro_reward_api.queue_metrics import QueueMetrics
from lasro_reward_api.scoring import Scorer
from lasro_reward_api.settings import RewardApiSettings, WorkerSettings
from lasro_reward_api.worker import is_cancelled, score_groups

log = logging.getLogger("lasro.reward_api")
TIDY_S = 60.0


class ScoringProcess:
    """Connections and scorer of one process; scores queued groups while `lifespan` lasts."""

    def __init__(self, settings: RewardApiSettings, adds: bool) -> None:
        """`adds`: whether it takes groups in, too. Raises ConfigError without a usable LASRO_REDIS_URL."""
        self.settings, self._adds = settings, adds
        self.metrics = CollectorRegistry()
        url = settings.redis_url.get_secret_value() if settings.redis_url else None
        self._redis, self._blocking_redis = connect_async(url), connect(url)
        self._queue_metrics = QueueMetrics(self._blocking_redis)
        self.metrics.register(self._queue_metrics)
        self.registry, self.queue = RewardRegistry(self._redis), GroupQueue(self._redis)
        self.endpoints = EndpointPool(settings, RewardMetrics(self.metrics))
        limits = Limits(settings.max_requests, settings.max_items, settings.max_reward_items)
        admission = Admission(limits, self.endpoints.metrics.queued)
        cache = ScoreCache(self._redis, settings.cache_ttl_s)
        self.scorer = Scorer(self.registry, self.endpoints, cache, admission, settings.max_pixels)
        self._workers: list[asyncio.Task[None]] = []
        self._warned: set[str] = set()

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        settings = self.settings
        if settings.groups_at_once:
            consumer = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
            pace = settings.groups_at_once, settings.stale_after_s, settings.group_timeout_s
            self._workers.append(asyncio.create_task(score_groups(self.queue, self.scorer, consumer, *pace)))
        keeping = [forget_deleted(self.registry, self.endpoints), self._queue_metrics.keep_reading()]
        others = [asyncio.create_task(one) for one in keeping]
        with suppress(UnreachableError, StorageError, ConfigError):  # the readiness checks report it
            await self._check_redis()
        yield
        for task in (*others, *self._workers):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self.endpoints.aclose()
        await self._redis.aclose()
        self._blocking_redis.close()

    async def ready(self) -> None:
        """Raises LasroError while groups cannot be scored."""
        await self._check_redis()
        if any(task.done() for task in self._workers):
            raise UnreachableError("the scoring worker has stopped; see the log and restart the service")

    async def _check_redis(self) -> None:
        warnings = await check_server_async(self._redis, self._adds)
        if await self.registry.epoch.is_over():
            warnings.append(DATA_LOST)
        for warning in warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                log.warning("%s", warning)


def create_worker(settings: WorkerSettings) -> FastAPI:
    """A worker: it scores queued groups and answers nothing but health and metrics."""
    process = ScoringProcess(settings, adds=False)
    return create_service("LaSRO scoring worker", settings, process.ready, process.lifespan, process.metrics)


async def forget_deleted(registry: RewardRegistry, endpoints: EndpointPool, interval_s: float = TIDY_S) -> None:
    """Until cancelled: forget rewards that were deleted through another process, or while they were scoring."""
    while not is_cancelled():
        await asyncio.sleep(interval_s)
        with suppress(UnreachableError, StorageError):
            for name in endpoints.metrics.names - await registry.names():
                await endpoints.forget(name)
