"""Whether a Redis server may hold the queue: what it would lose, and when, and whether it takes writes.

Read from INFO, which managed servers answer too where they forbid CONFIG, and tried out.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import redis
import redis.asyncio

from lasro.errors import ConfigError, LockedOutError, StorageError, UnreachableError
from lasro.redis_store import keys
from lasro.redis_store.connection import connect, redis_errors
from lasro.redis_store.lua import script

SECTIONS = ("server", "memory", "persistence")
OLDEST = (7, 0)
"""Of Redis; Valkey 8 calls itself 7.2 here."""
SAFE_POLICY = "noeviction"
ALLOW_OOM = "#!lua flags=allow-oom\n"


def warnings_about(info: Mapping[str, Any]) -> list[str]:
    """What of an INFO reply endangers the queue; raises ConfigError for a server that must not hold it."""
    version = str(info.get("redis_version", ""))
    parts = version.split(".")[:2]
    if len(parts) == 2 and all(part.isdecimal() for part in parts) and tuple(map(int, parts)) < OLDEST:
        raise ConfigError(f"Redis: got version {version}, expected 7.0 or newer, or Valkey 8 or newer")
    policy, maxmemory = info.get("maxmemory_policy", SAFE_POLICY), int(info.get("maxmemory", 0))
    if maxmemory and policy.startswith("allkeys-"):
        raise ConfigError(
            f"Redis evicts keys when it is full (maxmemory {maxmemory}, maxmemory-policy {policy}), and queued groups "
            f"would be lost; set maxmemory-policy {SAFE_POLICY}"
        )
    warnings = []
    if policy != SAFE_POLICY:
        lost = "queued groups" if policy.startswith("allkeys-") else "cached scores"
        warnings.append(f"Redis may evict {lost} (maxmemory-policy {policy}); set it to {SAFE_POLICY}")
    if not info.get("aof_enabled", 1):
        warnings.append("Redis keeps no append-only file: what is queued is lost when it restarts; set appendonly yes")
    elif info.get("aof_last_write_status", "ok") != "ok":
        warnings.append("Redis cannot write its append-only file; free its disk")
    return warnings


def _write_probe(adds: bool) -> str:
    """A script that writes. Where the caller only takes from the queue, a full Redis is no obstacle."""
    text = script("probe_writes")
    return text if adds else ALLOW_OOM + text


def check_server(client: redis.Redis, adds: bool = True) -> list[str]:
    """Warnings; raises ConfigError for a server that must not hold the queue.

    Raises StorageError for one that takes no writes, LockedOutError or UnreachableError. `adds`: whether the caller
    adds to the queue, which a server that is full does not allow.
    """
    with redis_errors():
        info: Any = client.info(*SECTIONS)
    warnings = warnings_about(info)
    with redis_errors():
        client.register_script(_write_probe(adds))([keys.WRITE_PROBE])
    return warnings


async def check_server_async(client: redis.asyncio.Redis, adds: bool = True) -> list[str]:
    """The same for asyncio."""
    with redis_errors():
        info: Any = await client.info(*SECTIONS)
    warnings = warnings_about(info)
    with redis_errors():
        await client.register_script(_write_probe(adds))(keys=[keys.WRITE_PROBE])
    return warnings


def refuse_unfit_redis(url: str | None) -> None:
    """Raise ConfigError for a Redis that would lose groups or locks the service out.

    A service calls this before it starts. A Redis that does not answer or takes no writes yet passes: the service waits
    for it later.
    """
    with suppress(UnreachableError, StorageError), connect(url) as client:
        try:
            check_server(client)
        except LockedOutError as error:
            raise ConfigError(str(error)) from error
