"""The reward API: a registry of reward endpoints, scoring, and groups on their way to the trainer."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI

from lasro.errors import UnreachableError
from lasro.redis_store.connection import connect_async, redis_errors
from lasro.redis_store.group_queue import GroupQueue
from lasro.redis_store.registry import RewardRegistry
from lasro.service_kit import create_service
from lasro_reward_api.cache import ScoreCache
from lasro_reward_api.reward_routes import reward_routes
from lasro_reward_api.scoring import Endpoints, Scorer
from lasro_reward_api.scoring_routes import scoring_routes
from lasro_reward_api.settings import RewardApiSettings
from lasro_reward_api.worker import score_groups


def create_app(settings: RewardApiSettings) -> FastAPI:
    """The app; its lifespan runs the scoring worker. Raises ConfigError without a usable LASRO_REDIS_URL."""
    redis = connect_async(settings.redis_url.get_secret_value() if settings.redis_url else None)
    registry, queue = RewardRegistry(redis), GroupQueue(redis)
    endpoints = Endpoints(settings)
    scorer = Scorer(registry, endpoints, ScoreCache(redis, settings.cache_ttl_s), settings)
    workers: list[asyncio.Task[None]] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        consumer = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        worker = score_groups(queue, scorer, consumer, settings.groups_at_once, settings.stale_after_s)
        workers.append(asyncio.create_task(worker))
        yield
        for task in workers:
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

    app = create_service("LaSRO reward API", settings, ready, lifespan)
    app.include_router(reward_routes(registry, scorer))
    app.include_router(scoring_routes(scorer, queue, settings))
    return app
