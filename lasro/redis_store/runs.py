"""Runs as Redis knows them: their names, and removing one with every key it has."""

from __future__ import annotations

from typing import Any

import redis

from lasro.redis_store import keys
from lasro.redis_store.connection import redis_errors
from lasro.redis_store.lua import script
from lasro.redis_store.work_stream import GROUP

KEYS_AT_A_TIME = 1000
"""Removed by one script call: Redis answers nobody else meanwhile."""


def run_names(client: redis.Redis) -> list[str]:
    """Names of the runs that groups were submitted to. Raises UnreachableError or StorageError."""
    with redis_errors():
        names: Any = client.smembers(keys.RUNS)
    return sorted(name.decode() for name in names)


def delete_run(client: redis.Redis, run: str) -> None:
    """Remove every key of a run and its place in the queue; harmless where there is none, or only a rest.

    Scores cached for other runs with the same images stay until they expire. Raises UnreachableError or StorageError.
    """
    delete = client.register_script(script("delete_run"))
    whole = [keys.samples(run), keys.dead_samples(run), keys.calls(run)]
    sets = [keys.groups(run), keys.blobs(run)]
    prefixes = [keys.group(run, ""), keys.blob(run, "")]
    with redis_errors():
        while delete([keys.WORK, keys.DEAD_WORK, keys.RUNS, *sets, *whole], [run, *prefixes, KEYS_AT_A_TIME, GROUP]):
            pass
