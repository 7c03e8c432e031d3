"""The stream of work that all scoring workers share: who holds which entry, for how long, and how often in vain.

A worker holds what it has claimed for as long as it renews its claims. What it leaves untouched, another takes over;
what was delivered MAX_DELIVERIES times without an outcome is set aside, since it may be what kills its workers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import redis
import redis.asyncio

from lasro.redis_store import keys
from lasro.redis_store.connection import LONGEST_REASON, MAX_BLOCK_MS, redis_errors, script

GROUP = "scorers"
MAX_DELIVERIES = 5
RETURNED = "returned"
"""Name that holds what workers have given back."""
RETURNED_IDLE_MS = 24 * 3600 * 1000
"""Idle time of what was given back: more than any `stale_ms`, so that it is taken at once."""
SILENT_MS = 3600 * 1000
"""Names of workers that hold nothing are forgotten after so long."""
Fields = dict[bytes, bytes]


class Entry(NamedTuple):
    """`deliveries` counts this one."""

    id: str
    fields: Fields
    deliveries: int


class WorkStream:
    """Every method may raise UnreachableError or StorageError."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis = client
        self._keep = client.register_script(script("keep_work"))
        self._put_back = client.register_script(script("put_back_work"))
        self._bury = client.register_script(script("bury_work"))
        self._stale_from = b"0-0"

    async def take(self, consumer: str, count: int, block_ms: int, stale_ms: int) -> list[Entry]:
        """Up to `count` entries: such as were left untouched for `stale_ms` first, then new ones.

        Waits up to `block_ms` (at most MAX_BLOCK_MS) when there is none.
        """
        with redis_errors():
            try:
                return await self._take(consumer, count, block_ms, stale_ms)
            except redis.ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
            await self._create_group()
            return await self._take(consumer, count, block_ms, stale_ms)

    async def _take(self, consumer: str, count: int, block_ms: int, stale_ms: int) -> list[Entry]:
        # One call looks at ten times `count` entries at most: the cursor lets the next look at those behind them.
        stale: Any = await self._redis.xautoclaim(
            keys.WORK, GROUP, consumer, stale_ms, self._stale_from.decode(), count=count
        )
        self._stale_from = stale[0]
        if stale[1]:
            return await self._counted(stale[1])
        reply: Any = await self._redis.xreadgroup(
            GROUP, consumer, {keys.WORK: ">"}, count=count, block=min(block_ms, MAX_BLOCK_MS) or None
        )
        streams = reply.values() if isinstance(reply, dict) else [entries for _, entries in reply or []]
        return [Entry(entry_id.decode(), fields, 1) for entries in streams for entry_id, fields in entries]

    async def _counted(self, entries: list[tuple[bytes, Fields]]) -> list[Entry]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for entry_id, _ in entries:
                pipeline.xpending_range(keys.WORK, GROUP, entry_id, entry_id, 1)
            found: list[Any] = await pipeline.execute()
        return [
            Entry(entry_id.decode(), fields, pending[0]["times_delivered"])
            for (entry_id, fields), pending in zip(entries, found, strict=True)
            if pending  # else another has finished it meanwhile
        ]

    async def _create_group(self) -> None:
        try:
            await self._redis.xgroup_create(keys.WORK, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def keep(self, consumer: str, entry_ids: list[str]) -> set[str]:
        """Tell the other workers that these entries are being worked on; returns those that are no longer held."""
        if not entry_ids:
            return set()
        with redis_errors():
            lost: Any = await self._keep(keys=[keys.WORK], args=[GROUP, consumer, *entry_ids])
        return {entry_id.decode() for entry_id in lost}

    async def put_back(self, consumer: str, entry_id: str) -> None:
        """Leave an entry for later, not counting this delivery: it becomes stale as if its worker had died now."""
        with redis_errors():
            await self._put_back(keys=[keys.WORK], args=[GROUP, consumer, consumer, 0, SILENT_MS, entry_id])

    async def leave(self, consumer: str) -> None:
        """Stop working under this name: what is unfinished may be claimed by others at once, and is not counted."""
        with redis_errors():
            await self._put_back(keys=[keys.WORK], args=[GROUP, consumer, RETURNED, RETURNED_IDLE_MS, SILENT_MS])

    async def bury(self, entry: Entry, reason: str, group: tuple[str, str] | None) -> None:
        """Set an entry aside for good, with its `group` (run, group id) where it names one."""
        names = [] if group is None else [keys.group(*group), keys.calls(group[0])]
        with redis_errors():
            await self._bury(
                keys=[keys.WORK, keys.DEAD_WORK, *names],
                args=[GROUP, entry.id, reason[:LONGEST_REASON], entry.deliveries, *(group or ())],
            )
