"""The reward API: a registry of reward endpoints, scoring, and groups on their way to the trainer."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from lasro.errors import StorageError, UnreachableError
from lasro.redis_store.connection import connect_async, redis_errors
from lasro.redis_store.group_queue import GroupQueue
from lasro.redis_store.registry import RewardRegistry
from lasro.service_kit import create_service
from lasro_reward_api.admission import Admission, Limits
from lasro_reward_api.cache import ScoreCache
from lasro_reward_api.endpoints import Endpoints
from lasro_reward_api.metrics import RewardMetrics
from lasro_reward_api.reward_routes import reward_routes
from lasro_reward_api.scoring import Scorer
from lasro_reward_api.scoring_routes import add_score_route, group_routes
from lasro_reward_api.settings import RewardApiSettings
from lasro_reward_api.worker import is_cancelled, score_groups

TIDY_S = 60.0


def create_app(settings: RewardApiSettings) -> FastAPI:
    """The app; its lifespan runs the scoring worker. Raises ConfigError without a usable LASRO_REDIS_URL."""
    redis = connect_async(settings.redis_url.get_secret_value() if settings.redis_url else None)
    registry, queue = RewardRegistry(redis), GroupQueue(redis)
    metrics = CollectorRegistry()
    endpoints = Endpoints(settings, RewardMetrics(metrics))
    limits = Limits(settings.max_requests, settings.max_items, settings.max_reward_items)
    admission = Admission(limits, endpoints.metrics.queued)
    scorer = Scorer(registry, endpoints, ScoreCache(redis, settings.cache_ttl_s), admission, settings.max_pixels)
    workers: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        consumer = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        worker = score_groups(queue, scorer, consumer, settings.groups_at_once, settings.stale_after_s)
        workers.append(asyncio.create_task(worker))
        tidying = asyncio.create_task(forget_deleted(registry, endpoints))
        yield
        for task in (tidying, *workers):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await endpoints.aclose()
        await redis.aclose()

    async def ready() -> None:
        with redis_errors():
            await redis.ping()  # pyright: ignore[reportGeneralTypeIssues]
        if any(task.done() for task in workers):
            raise UnreachableError("the scoring worker has stopped; see the log and restart the service")

    app = create_service("LaSRO reward API", settings, ready, lifespan, metrics)
    add_score_route(app, scorer, settings)
    app.include_router(reward_routes(registry, scorer, endpoints))
    app.include_router(group_routes(scorer, queue, settings))
    return app


async def forget_deleted(registry: RewardRegistry, endpoints: Endpoints, interval_s: float = TIDY_S) -> None:
    """Until cancelled: forget rewards that were deleted through another process, or while they were scoring."""
    while not is_cancelled():
        await asyncio.sleep(interval_s)
        with suppress(UnreachableError, StorageError):
            for name in endpoints.metrics.names - await registry.names():
                await endpoints.forget(name)
