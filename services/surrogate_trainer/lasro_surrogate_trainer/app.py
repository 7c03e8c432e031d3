"""The surrogate trainer as a service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from lasro.errors import BusyError
from lasro.folder_lock import hold_folder
from lasro.models.frozen import ModelCache
from lasro.redis_store.connection import connect
from lasro.service.app import create_service
from lasro_surrogate_trainer.metrics import RunMetrics
from lasro_surrogate_trainer.routes import runs as runs_routes
from lasro_surrogate_trainer.routes import surrogate, training
from lasro_surrogate_trainer.run_registry import RunRegistry
from lasro_surrogate_trainer.settings import TrainerEnvironment
from lasro_surrogate_trainer.store import ADVICE

READY_TIMEOUT_S = 10.0
LOCK_WAIT_S = 30.0
"""A trainer whose parent was killed may still finish a step and save its optimiser."""
IN_USE = "another trainer works in this folder"  # it would overwrite the commits of the first


def create_app(settings: TrainerEnvironment, models: ModelCache | None = None) -> FastAPI:
    """The service; raises ConfigError without a usable LASRO_REDIS_URL. Runs on disk are recovered when it starts.

    `models`: those that are loaded already.
    """
    url = settings.redis_url.get_secret_value() if settings.redis_url else None
    runs = RunRegistry(settings, connect(url), models or ModelCache())
    metrics = CollectorRegistry()

    async def ready() -> None:
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await runs.check()
        except TimeoutError as error:
            raise BusyError(f"Redis or a model did not answer within {READY_TIMEOUT_S:g} s") from error

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with hold_folder(settings.data_dir, IN_USE, "stop it, or set another LASRO_DATA_DIR", LOCK_WAIT_S, ADVICE):
            await runs.recover()
            yield
            await runs.close()

    app = create_service("LaSRO surrogate trainer", settings, ready, lifespan, metrics)
    app.state.runs = runs
    metrics.register(RunMetrics(runs.all))
    for routes in (runs_routes.router, training.router, surrogate.router):
        app.include_router(routes)
    return app
