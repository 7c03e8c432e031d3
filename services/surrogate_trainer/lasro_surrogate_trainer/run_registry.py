"""The runs of this process: created, found, deleted, and recovered from disk."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

import redis

from lasro.config import ModelSettings, SurrogateRun, differing_keys
from lasro.errors import (
    BusyError,
    ConfigError,
    ConflictError,
    LasroError,
    NotFoundError,
    StorageError,
    UnreachableError,
)
from lasro.models.backbone import check_latents
from lasro.models.frozen import ONLY_MEMORY, ModelCache
from lasro.redis_store.sample_stream import SampleStream
from lasro.redis_store.server import check_server
from lasro_surrogate_trainer.readiness import ReadinessProbe
from lasro_surrogate_trainer.run_actor import RunActor
from lasro_surrogate_trainer.settings import TrainerEnvironment
from lasro_surrogate_trainer.store import RunStore, clean

log = logging.getLogger("lasro.trainer")
CHANGES_NO_WEIGHT = {"model": ONLY_MEMORY, "latents": True}
"""Settings of what is held in memory at once, and what another machine computes with another last bit."""


class RunRegistry:
    """The runs by name. All coroutines belong to one event loop; blocking work is done on other threads."""

    def __init__(self, settings: TrainerEnvironment, client: redis.Redis, models: ModelCache) -> None:
        """Raises ModelError where the model of the readiness check cannot be loaded."""
        self._settings, self._redis, self._models = settings, client, models
        self._runs: dict[str, RunActor] = {}
        self._changing = asyncio.Lock()
        self._warned: set[str] = set()
        self._probing = asyncio.Lock()
        self._probe = self._load_probe()

    def _load_probe(self) -> ReadinessProbe | None:
        path, device = self._settings.probe_model, self._settings.probe_device
        return None if path is None else ReadinessProbe(self._models.get(ModelSettings(path=path), device))

    def _store(self, name: str) -> RunStore:
        settings = self._settings
        return RunStore(settings.data_dir, name, settings.keep_versions, settings.keep_versions_s)

    async def recover(self) -> None:
        """Open every run on disk; one that cannot be opened is logged, and left for `create` to try again."""
        with suppress(UnreachableError, StorageError, ConfigError):  # the readiness checks report it
            await asyncio.to_thread(self._check_redis)
        for name in await asyncio.to_thread(clean, self._settings.data_dir):
            store = self._store(name)
            try:
                config = await asyncio.to_thread(store.find_config)
                if config is not None:
                    await self._open(name, config, store)
            except LasroError as error:
                log.error("run %s cannot be opened: %s", name, error)

    async def _open(self, name: str, config: SurrogateRun, store: RunStore) -> RunActor:
        def load() -> RunActor:
            frozen = self._models.get(config.trunk_model, config.surrogate.device)
            check_latents(frozen.model, config)
            store.save_config(config)
            return RunActor(name, config, frozen, store, self._settings.redo_s)

        run = await asyncio.to_thread(load)
        run.start(SampleStream(self._redis, name))
        self._runs[name] = run
        self._probe = None
        return run

    async def create(self, name: str, config: SurrogateRun) -> tuple[RunActor, bool]:
        """The run, and whether it is new; raises ConflictError naming settings that differ from an existing run's."""
        async with self._changing:
            store = self._store(name)
            run = self._runs.get(name)
            old = run.config if run else await asyncio.to_thread(store.find_config)
            if old is not None:
                _check_same(name, old, config)
            if run is not None:
                return run, False
            if len(self._runs) >= self._settings.max_runs:
                raise BusyError(
                    f"run {name}: {len(self._runs)} runs are open already; delete one, or raise LASRO_MAX_RUNS"
                )
            return await self._open(name, config, store), old is None

    def get(self, name: str) -> RunActor:
        """The run of this name; raises NotFoundError."""
        if name not in self._runs:
            raise NotFoundError(f"run {name}: unknown; expected one of {sorted(self._runs)[:20]}, or PUT it first")
        return self._runs[name]

    def all(self) -> list[RunActor]:
        """All runs, in the order of their names."""
        return [self._runs[name] for name in sorted(self._runs)]

    async def delete(self, name: str) -> None:
        """Close a run and remove its files and Redis keys; where that fails, delete it again."""
        async with self._changing:
            await self.get(name).delete()
            del self._runs[name]

    async def check(self) -> None:
        """Check Redis and the model of each run, or LASRO_PROBE_MODEL while there are no runs; raises LasroError."""
        await asyncio.to_thread(self._check_redis)
        for run in self.all():
            await run.check()
        if not self._runs and self._settings.probe_model is not None:
            async with self._probing:
                self._probe = self._probe or await asyncio.to_thread(self._load_probe)
                if self._probe is not None:
                    await asyncio.to_thread(self._probe.check)

    def _check_redis(self) -> None:
        for warning in check_server(self._redis, adds=False):
            if warning not in self._warned:
                self._warned.add(warning)
                log.warning("%s", warning)

    async def close(self) -> None:
        """Close every run and keep its files."""
        await asyncio.gather(*(run.close() for run in self._runs.values()))
        await asyncio.to_thread(self._redis.close)


def _check_same(name: str, old: SurrogateRun, new: SurrogateRun) -> None:
    before, now = (run.model_dump(mode="json", exclude=CHANGES_NO_WEIGHT) for run in (old, new))
    differing = differing_keys(before, now)
    if differing:
        raise ConflictError(
            f"run {name}: exists with other settings ({', '.join(differing)}); use them, another name, or delete it"
        )
