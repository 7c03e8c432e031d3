"""Registered rewards, kept in Redis with a version that grows at each change and is never given out twice."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import redis.asyncio

from lasro import wire
from lasro.errors import ConflictError, NotFoundError
from lasro.redis_store import keys
from lasro.redis_store.connection import redis_errors
from lasro.redis_store.epoch import DataEpoch
from lasro.redis_store.lua import script

DATA_LOST = (
    "Redis has lost all that it had since this service first asked it, and came back empty: register rewards again, "
    "and keep an append-only file (appendonly yes)"
)


class Registration(NamedTuple):
    """A reward as registered, its secret included."""

    spec: wire.RewardSpec
    version: int

    def info(self, images_per_call: int) -> wire.RewardInfo:
        """What others may see of the reward: no secret and no header values.

        `images_per_call` comes from the caller, since it depends on the protocol.
        """
        shown = self.spec.model_dump(exclude={"secret", "headers"})
        return wire.RewardInfo(
            **shown,
            images_per_call=images_per_call,
            has_secret=self.spec.secret is not None,
            header_names=sorted(self.spec.headers),
            version=self.version,
        )


class RewardRegistry:
    """Every method may raise UnreachableError or StorageError."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis, self.epoch = client, DataEpoch(client)
        self._put = client.register_script(script("put_reward"))

    async def put(self, spec: wire.RewardSpec, replace: bool) -> tuple[Registration, bool]:
        """Register `spec`, or change what has its name where `replace`; returns it and whether it is new.

        Raises ConflictError for a name in use. A spec equal to the registered one keeps its version.
        """
        arguments = [spec.name, spec.model_dump_json(), "1" if replace else "0"]
        with redis_errors():
            reply: Any = await self._put(keys=[keys.REWARDS, keys.REWARD_VERSIONS], args=arguments)
        version, is_new = reply
        if version == 0:
            raise ConflictError(f"reward {spec.name}: the name is in use; PUT /v1/rewards/{spec.name} replaces it")
        return Registration(spec, version), bool(is_new)

    async def get(self, name: str) -> Registration:
        """The reward of that name; raises NotFoundError."""
        return (await self.get_many([name]))[0]

    async def get_many(self, names: list[str]) -> list[Registration]:
        """The rewards of those names, in order; raises NotFoundError naming the first that is missing."""
        stored = await self._read(names)
        if None in stored and await self.epoch.is_over():
            name = names[stored.index(None)]
            raise NotFoundError(f"reward {name}: not registered; {DATA_LOST}")
        return [registered(name, value) for name, value in zip(names, stored, strict=True)]

    async def _read(self, names: list[str]) -> list[bytes | None]:
        with redis_errors():
            stored: Any = await self._redis.hmget(keys.REWARDS, names)  # pyright: ignore[reportGeneralTypeIssues]
        return stored

    async def names(self) -> set[str]:
        """Of all rewards."""
        with redis_errors():
            found: Any = await self._redis.hkeys(keys.REWARDS)  # pyright: ignore[reportGeneralTypeIssues]
        return {name.decode() for name in found}

    async def list(self, after: str = "", limit: int | None = None) -> list[Registration]:
        """Rewards by name, those after `after`; what is deleted meanwhile is left out."""
        names = sorted(name for name in await self.names() if name > after)[:limit]
        return [_decode(value) for value in await self._read(names) if value is not None] if names else []

    async def delete(self, name: str) -> None:
        """Forget a reward; its versions stay used up. Raises NotFoundError."""
        with redis_errors():
            removed: int = await self._redis.hdel(keys.REWARDS, name)  # pyright: ignore[reportGeneralTypeIssues]
        if not removed:
            raise NotFoundError(f"reward {name}: not registered; GET /v1/rewards lists what is")


def registered(name: str, stored: bytes | None) -> Registration:
    """What is stored under that name; raises NotFoundError where nothing is."""
    if stored is None:
        raise NotFoundError(f"reward {name}: not registered; POST /v1/rewards registers it")
    return _decode(stored)


@lru_cache(1024)
def _decode(value: bytes) -> Registration:
    version, _, spec = value.partition(b" ")
    return Registration(wire.from_json(wire.RewardSpec, spec), int(version))
