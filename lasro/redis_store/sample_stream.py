"""A run's scored groups as its trainer reads them: in order, until each is acknowledged.

One trainer reads a run, under one consumer name. Entries that it read and did not acknowledge stay pending in Redis. A
new `SampleStream` of the same run reads those first, oldest first, then new ones. Entries of a reply that was lost are
read again the same way. No object hands out an entry twice.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import redis

from lasro import wire
from lasro.errors import WireError
from lasro.redis_store import keys
from lasro.redis_store.connection import LONGEST_REASON, MAX_BLOCK_MS, redis_errors
from lasro.redis_store.lua import script
from lasro.redis_store.runs import delete_run

log = logging.getLogger("lasro.redis_store")
GROUP = "trainer"
CONSUMER = "trainer"
FIRST = b"0-0"
MOST_ACKED = 1000
"""In one script call."""


class _HandedOut(NamedTuple):
    """An entry that was given to the caller: its group's id, empty before release 0.3, and the digest of its blob,
    empty where it has none."""

    group: bytes
    blob: str


UNKNOWN = _HandedOut(b"", "?")


class SampleStream:
    """Reads one run's stream. Not thread-safe; every method may raise UnreachableError or StorageError."""

    def __init__(self, client: redis.Redis, run: str) -> None:
        self._redis, self._run, self._key = client, run, keys.samples(run)
        self._ack = client.register_script(script("ack_samples"))
        self._dead_letter = client.register_script(script("dead_letter_sample"))
        self._replay_from: bytes | None = FIRST
        self._has_read = False
        self._handed_out: dict[str, _HandedOut] = {}  # by entry id

    def read(self, count: int, block_ms: int = 0) -> list[tuple[str, wire.ScoredGroup]]:
        """Up to `count` samples not yet acknowledged, oldest first; pending ones of an earlier life first.

        Waits up to `block_ms` (at most MAX_BLOCK_MS) when there is none. Entries that cannot be read go to the
        run's dead-letter stream with the reason, and do not stop the others.
        """
        with redis_errors():
            try:
                return self._read(count, min(block_ms, MAX_BLOCK_MS))
            except (redis.ConnectionError, redis.TimeoutError):
                # Redis may have given us entries in the reply that was lost: they are pending now.
                self._replay_from = FIRST
                raise

    def _read(self, count: int, block_ms: int) -> list[tuple[str, wire.ScoredGroup]]:
        while self._replay_from is not None:
            entries = self._fetch(self._replay_from, count, 0)
            self._replay_from = entries[-1][0] if entries else None
            if samples := self._decoded(entries):
                return samples
        return self._decoded(self._fetch(b">", count, block_ms))

    def _fetch(self, after: bytes, count: int, block_ms: int) -> list[tuple[bytes, dict[bytes, bytes] | None]]:
        def ask() -> Any:
            return self._redis.xreadgroup(GROUP, CONSUMER, {self._key: after}, count=count, block=block_ms or None)

        try:
            reply = ask()
        except redis.ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            self._create_group()
            self._note_loss()
            reply = ask()
        self._has_read = True
        streams = reply.values() if isinstance(reply, dict) else [entries for _, entries in reply or []]
        return [entry for entries in streams for entry in entries]

    def _note_loss(self) -> None:
        """Where the group of readers is gone after it was read from, so is all that was on the stream.

        A new stream may give an id a second time, so what was handed out says nothing about it.
        """
        if self._has_read:
            log.warning("run %s: Redis lost the stream of samples; what comes from now on is read", self._run)
            self._handed_out.clear()

    def _create_group(self) -> None:
        try:
            self._redis.xgroup_create(self._key, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def _decoded(self, entries: list[tuple[bytes, dict[bytes, bytes] | None]]) -> list[tuple[str, wire.ScoredGroup]]:
        samples = []
        entries.reverse()
        while entries:
            # Each entry is freed before the next is decoded: memory just freed is used again, and fresh memory costs
            # ten times as much as the copy into it.
            raw_id, given = entries.pop()
            entry_id, fields = raw_id.decode(), given or {}
            known, group = self._handed_out.get(entry_id), fields.get(b"group", b"")
            # A Redis whose clock was set back gives an id again that it lost in a power cut.
            if known is not None and known.group == group:
                continue
            try:
                sample = self._sample(fields)
            except WireError as error:
                self._write_dead_letter(entry_id, str(error))
                continue
            blob = "" if b"sample" in fields else fields[b"blob"].decode()
            self._handed_out[entry_id] = _HandedOut(group, blob)
            samples.append((entry_id, sample))
        return samples

    def _sample(self, fields: dict[bytes, bytes]) -> wire.ScoredGroup:
        body = fields.get(b"sample")
        if body is None:
            digest = fields.get(b"blob", b"").decode("ascii", "replace")
            stored: Any = self._redis.get(keys.blob(self._run, digest)) if digest else None
            if stored is None or hashlib.sha256(stored).hexdigest() != digest:
                raise WireError(f"blob {digest or '(none)'}: missing or changed, expected bytes of that digest")
            body = stored
        return wire.from_msgpack(wire.ScoredGroup, body)

    def _write_dead_letter(self, entry_id: str, reason: str) -> None:
        log.warning("run %s: sample entry %s is dead-lettered: %s", self._run, entry_id, reason)
        self._dead_letter([self._key, keys.dead_samples(self._run)], [GROUP, entry_id, reason[:LONGEST_REASON]])

    def dead_letter(self, entry_id: str, reason: str) -> None:
        """Move a sample that was read but cannot be used to the dead-letter stream; `lasro queue ls` shows it."""
        with redis_errors():
            self._write_dead_letter(entry_id, reason)
        self._handed_out.pop(entry_id, None)

    def ack(self, entry_ids: Sequence[str]) -> None:
        """Acknowledge these entries. Those that no other consumer group has to read are deleted, with their blobs.

        Entries that are deleted already are skipped.
        """
        for start in range(0, len(entry_ids), MOST_ACKED):
            ids = entry_ids[start : start + MOST_ACKED]
            known = [self._handed_out.get(entry_id, UNKNOWN) for entry_id in ids]
            pairs = [part for entry_id, entry in zip(ids, known, strict=True) for part in (entry_id, entry.blob)]
            with redis_errors():
                self._ack([self._key, keys.blobs(self._run)], [GROUP, keys.blob(self._run, ""), *pairs])
            for entry_id in ids:
                self._handed_out.pop(entry_id, None)

    def lag(self) -> int:
        """Samples on the stream that were never read: all but the pending, since acknowledged ones are deleted."""
        with redis_errors():
            try:
                pending: Any = self._redis.xpending(self._key, GROUP)
                waiting = int(pending["pending"])
            except redis.ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                waiting = 0
            length: Any = self._redis.xlen(self._key)
            return max(0, length - waiting)

    def delete(self) -> None:
        """Remove every key of the run: samples, groups, blobs, counters."""
        delete_run(self._redis, self._run)
        self._handed_out.clear()
        self._replay_from, self._has_read = FIRST, False
