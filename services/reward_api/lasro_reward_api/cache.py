"""Cached scores in Redis, by reward, version and the digest of prompt, metadata and image."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import redis.asyncio

from lasro import wire
from lasro.redis_store import keys
from lasro.redis_store.connection import redis_errors
from lasro.redis_store.lua import script
from lasro.redis_store.pipelined_batcher import PipelinedBatcher
from lasro.redis_store.registry import Registration, registered
from lasro_reward_api.checks import canonical_metadata

_FLOAT = struct.Struct("<d")
_LENGTHS = struct.Struct("<QQ")
LARGEST = 4096
"""Most scores in one round trip, unless a single request asks for more."""
NO_METADATA = canonical_metadata(None)


def content_digests(request: wire.ScoreRequest) -> list[bytes]:
    """SHA-256 of each item's prompt, metadata and image, lengths first, so that none runs into the next.

    Raises WireError for metadata that JSON cannot hold.
    """
    if request.metadata is None:
        extras = [NO_METADATA] * len(request.images)
    else:
        extras = [canonical_metadata(extra) for extra in request.metadata]
    digests = []
    for text, extra, image in zip(request.prompts, extras, request.images, strict=True):
        prompt = text.encode()
        whole = b"".join((_LENGTHS.pack(len(prompt), len(extra)), prompt, extra, image))
        digests.append(hashlib.sha256(whole).digest())
    return digests


class Known(NamedTuple):
    """A reward as it is registered now, and its cached scores of some items, None where there is none."""

    registration: Registration
    scores: list[float | None]


class _Asked(NamedTuple):
    names: Sequence[str]
    digests: Sequence[bytes]

    def weight(self) -> int:
        """Scores asked for."""
        return len(self.names) * len(self.digests)

    @property
    def arguments(self) -> Iterator[Any]:
        """As the script wants them."""
        yield len(self.names)
        yield from self.names
        yield b"".join(self.digests)


class ScoreCache:
    """Both methods may raise UnreachableError or StorageError."""

    def __init__(self, client: redis.asyncio.Redis, ttl_s: int) -> None:
        self._redis, self._ttl_s = client, ttl_s
        self._look_up = client.register_script(script("look_up_scores"))
        self._keep = client.register_script(script("keep_scores"))
        self._stored: PipelinedBatcher[_Asked, list[Any]] = PipelinedBatcher(self._read, _Asked.weight, LARGEST)
        self._new: PipelinedBatcher[dict[bytes, bytes], None] = PipelinedBatcher(self._write, len, LARGEST)

    async def look_up(self, names: Sequence[str], digests: Sequence[bytes]) -> list[Known]:
        """Each reward with its scores by digest; raises NotFoundError for one that is not registered."""
        reply = await self._stored.get(_Asked(names, digests))
        found = []
        for name, stored, scores in zip(names, reply[::2], reply[1::2], strict=True):
            registration = registered(name, stored)
            numbers: list[float | None] = [None] * len(digests)
            if registration.spec.cache:
                numbers = [None if value is None else _FLOAT.unpack(value)[0] for value in scores]
            found.append(Known(registration, numbers))
        return found

    async def keep(self, registration: Registration, scores: Mapping[bytes, float]) -> None:
        """Store scores by digest, where the reward wants it."""
        if not scores or not registration.spec.cache:
            return
        name, version = registration.spec.name, registration.version
        await self._new.get({keys.score(name, version, digest): _FLOAT.pack(score) for digest, score in scores.items()})

    async def _read(self, all_asked: list[_Asked]) -> list[list[Any]]:
        arguments = [argument for asked in all_asked for argument in asked.arguments]
        with redis_errors():
            reply: Any = await self._look_up(keys=[keys.REWARDS], args=[keys.SCORE, *arguments])
        place, replies = 0, []
        for asked in all_asked:
            replies.append(reply[place : place + 2 * len(asked.names)])
            place += 2 * len(asked.names)
        return replies

    async def _write(self, all_scores: list[dict[bytes, bytes]]) -> list[None]:
        together = {key: value for scores in all_scores for key, value in scores.items()}
        with redis_errors():
            await self._keep(keys=list(together), args=[self._ttl_s, *together.values()])
        return [None] * len(all_scores)
