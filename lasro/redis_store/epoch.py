"""Whether Redis still has what it had: a server that came back empty answers as if nothing had ever been there."""

from __future__ import annotations

import uuid
from typing import Any

import redis.asyncio

from lasro.redis_store import keys
from lasro.redis_store.connection import redis_errors


class DataEpoch:
    """Remembers a random string that the first process to ask puts into Redis; it is gone when all data are."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis = client
        self._first: bytes | None = None

    async def is_over(self) -> bool:
        """Whether all data that Redis had when this was first asked are lost. Raises UnreachableError, StorageError."""
        with redis_errors():
            current: Any = await self._redis.get(keys.EPOCH)  # a full server refuses any SET
            if current is None:
                drawn = uuid.uuid4().hex.encode()
                current = await self._redis.set(keys.EPOCH, drawn, nx=True, get=True) or drawn
        self._first = self._first or current
        return current != self._first
