"""Scores already paid for, in Redis under the digest of all that they depend on."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import redis.asyncio

from lasro import wire
from lasro.redis_store import keys
from lasro.redis_store.connection import redis_errors
from lasro.redis_store.registry import Registration
from lasro_reward_api.checks import canonical_metadata

_FLOAT = struct.Struct("<d")


def content_digests(request: wire.ScoreRequest) -> list[bytes]:
    """SHA-256 of each item's image, prompt and metadata. Parts are hashed apart, so that none runs into the next."""
    metadata = request.metadata or [None] * len(request.images)
    digests = []
    for image, prompt, extra in zip(request.images, request.prompts, metadata, strict=True):
        whole = hashlib.sha256(hashlib.sha256(image).digest())
        whole.update(hashlib.sha256(prompt.encode()).digest())
        whole.update(hashlib.sha256(canonical_metadata(extra)).digest())
        digests.append(whole.digest())
    return digests


def score_digest(content: bytes, registration: Registration) -> str:
    """Of one item scored by one version of a reward, whose name ends at the colon that no name contains."""
    return hashlib.sha256(f"{registration.spec.name}:{registration.version}:".encode() + content).hexdigest()


class ScoreCache:
    """Both methods may raise UnreachableError or StorageError."""

    def __init__(self, client: redis.asyncio.Redis, ttl_s: int) -> None:
        self._redis, self._ttl_s = client, ttl_s

    async def look_up(self, digests: list[str]) -> list[float | None]:
        """The cached score of each digest, null where there is none."""
        with redis_errors():
            found: Any = await self._redis.mget([keys.score(digest) for digest in digests])
        return [None if value is None else _FLOAT.unpack(value)[0] for value in found]

    async def keep(self, scores: Mapping[str, float]) -> None:
        """Store scores by digest."""
        if not scores:
            return
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipeline:
                for digest, score in scores.items():
                    pipeline.set(keys.score(digest), _FLOAT.pack(score), ex=self._ttl_s)
                await pipeline.execute()
