"""The stream of work that all scoring workers share, read through one consumer group.

A worker holds an entry for as long as it renews its claim. Another worker takes over what is not renewed. An entry that
was delivered MAX_DELIVERIES times without an outcome is dead-lettered, since it may be what kills its workers.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import redis

from lasro.redis_store import keys
from lasro.redis_store.clients import AsyncClient
from lasro.redis_store.connection import LONGEST_REASON, MAX_BLOCK_MS, redis_errors
from lasro.redis_store.lua import script

GROUP = "scorers"
MAX_DELIVERIES = 5
RETURNED = "returned"
"""Consumer that holds the entries which workers gave back when they ended."""
RETURNED_IDLE_MS = 24 * 3600 * 1000
"""Idle time set on entries that were given back: more than any `stale_ms`, so the next `take` gets them."""
MIN_CLOCK_STEP_MS = 1000
"""Redis' clock was set where it is off by more than this and by more than half of `stale_ms`."""
SILENT_MS = 3600 * 1000
"""Idle consumers that hold no entry are deleted after this time."""
Fields = dict[bytes, bytes]


class Entry(NamedTuple):
    """One claimed entry. `deliveries` counts how often it was handed to a worker, this time included."""

    id: str
    fields: Fields
    deliveries: int


class WorkStream:
    """Every method may raise UnreachableError or StorageError."""

    def __init__(self, client: AsyncClient) -> None:
        self._redis = client
        self._keep = client.register_script(script("keep_work"))
        self._put_back = client.register_script(script("put_back_work"))
        self._dead_letter = client.register_script(script("dead_letter_work"))
        self._take_work = client.register_script(script("take_work"))
        self._stale_from = b"0-0"
        self._clock: tuple[int, float] | None = None  # Redis' clock in ms, and ours in s when it showed that

    async def take(self, consumer: str, count: int, block_ms: int, stale_ms: int) -> list[Entry]:
        """Claim up to `count` entries for `consumer`.

        Entries whose claim was not renewed for `stale_ms` milliseconds come first. Only where there are none, new ones
        are read, with a wait of up to `block_ms` (at most MAX_BLOCK_MS) for the first. Where Redis' clock was set, in
        either direction, all claims count as renewed at the first call after it.
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
        if stale := await self._take_stale(consumer, count, stale_ms):
            return stale
        reply: Any = await self._redis.xreadgroup(
            GROUP, consumer, {keys.WORK: ">"}, count=count, block=min(block_ms, MAX_BLOCK_MS) or None
        )
        streams = reply.values() if isinstance(reply, dict) else [entries for _, entries in reply or []]
        return [Entry(entry_id.decode(), fields, 1) for entries in streams for entry_id, fields in entries]

    async def _take_stale(self, consumer: str, count: int, stale_ms: int) -> list[Entry]:
        # One call looks at ten times `count` entries at most: the next goes on from where it stopped.
        tolerance_ms = max(MIN_CLOCK_STEP_MS, stale_ms // 2)
        arguments = [consumer, count, stale_ms, self._stale_from, self._expected_ms(), tolerance_ms]
        reply: Any = await self._take_work(keys=[keys.WORK], args=[GROUP, *arguments, RETURNED, RETURNED_IDLE_MS])
        server_ms, self._stale_from, entries = reply
        self._clock = server_ms, time.monotonic()
        return [
            Entry(entry_id.decode(), dict(zip(fields[::2], fields[1::2], strict=True)), deliveries)
            for entry_id, fields, deliveries in entries
        ]

    def _expected_ms(self) -> int | str:
        """What Redis' clock should show now, going by this process' monotonic clock since the last look at it."""
        if self._clock is None:
            return ""
        server_ms, seen_at_s = self._clock
        return server_ms + int((time.monotonic() - seen_at_s) * 1000)

    async def _create_group(self) -> None:
        try:
            await self._redis.xgroup_create(keys.WORK, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def keep(self, consumer: str, entry_ids: list[str]) -> set[str]:
        """Renew the consumer's claims on these entries; returns the ids that it no longer holds."""
        if not entry_ids:
            return set()
        with redis_errors():
            lost: Any = await self._keep(keys=[keys.WORK], args=[GROUP, consumer, *entry_ids])
        return {entry_id.decode() for entry_id in lost}

    async def put_back(self, consumer: str, entry_id: str) -> None:
        """Give one entry back without counting this delivery. It becomes stale as if its worker had died now."""
        with redis_errors():
            await self._put_back(keys=[keys.WORK], args=[GROUP, consumer, consumer, 0, SILENT_MS, entry_id])

    async def leave(self, consumer: str) -> None:
        """Give back all entries of the consumer. Others may claim them at once, and this delivery does not count."""
        with redis_errors():
            await self._put_back(keys=[keys.WORK], args=[GROUP, consumer, RETURNED, RETURNED_IDLE_MS, SILENT_MS])

    async def dead_letter(self, entry: Entry, reason: str, group: tuple[str, str] | None) -> None:
        """Move an entry to the dead-letter stream with the reason, and its `group` (run, group id) where it names one.

        Nobody is given it again, unless `lasro queue retry` puts it back.
        """
        names = [] if group is None else [keys.group(*group), keys.calls(group[0])]
        with redis_errors():
            await self._dead_letter(
                keys=[keys.WORK, keys.DEAD_WORK, *names],
                args=[GROUP, entry.id, reason[:LONGEST_REASON], entry.deliveries, *(group or ())],
            )
