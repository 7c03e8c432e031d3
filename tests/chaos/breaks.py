"""Mistakes that others make, to be caught by the same check: each changes the product in its own process only."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lasro import wire
from lasro.errors import UnreachableError
from lasro.redis_store import group_queue, keys
from lasro.redis_store.connection import redis_errors
from lasro.redis_store.group_queue import Claim, GroupQueue

TRAINER, REWARD_API = "lasro_surrogate_trainer", "lasro_reward_api"
TRIES = 3
SHORTEST_STREAM = 4


def acknowledge_first(module: str) -> None:
    """The trainer acknowledges what it has read, before it is in a checkpoint."""
    if module == TRAINER:
        from lasro.redis_store.sample_stream import SampleStream

        read = SampleStream.read

        def read_and_acknowledge(
            self: SampleStream, count: int, block_ms: int = 0
        ) -> list[tuple[str, wire.ScoredGroup]]:
            entries = read(self, count, block_ms)
            self.ack([entry_id for entry_id, _ in entries])
            return entries

        SampleStream.read = read_and_acknowledge


def plain_xadd(module: str) -> None:
    """Workers deliver by separate commands, sent again when a reply is lost, as clients of Redis do by default."""
    if module == REWARD_API:

        async def finish(self: GroupQueue, claim: Claim, items: list[wire.ScoredItem]) -> bool:
            run, group_id = claim.run, claim.submission.group_id
            sample = wire.to_msgpack(group_queue._sample(claim.submission, items))
            scores = group_queue._ITEMS.dump_json(items)
            redis: Any = self._redis
            for _ in range(TRIES):
                with suppress(UnreachableError), redis_errors():
                    await redis.hset(keys.group(run, group_id), mapping={"state": "scored", "items": scores})
                    await redis.xadd(keys.samples(run), {"sample": sample})
                    await redis.xack(keys.WORK, group_queue.GROUP, claim.entry_id)
                    await redis.xdel(keys.WORK, claim.entry_id)
                    return True
            return False

        GroupQueue.finish = finish


def trim_by_length(module: str) -> None:
    """Streams are kept short by MAXLEN, whoever still needs what is cut off."""
    if module == REWARD_API:
        finish = GroupQueue.finish

        async def finish_and_trim(self: GroupQueue, claim: Claim, items: list[wire.ScoredItem]) -> bool:
            finished = await finish(self, claim, items)
            await self._redis.xtrim(keys.samples(claim.run), maxlen=SHORTEST_STREAM, approximate=False)
            return finished

        GroupQueue.finish = finish_and_trim


def take_all(module: str) -> None:
    """The replay takes a group again that it has seen."""
    if module == TRAINER:
        from lasro.training.replay_buffer import ReplayBuffer, ReplayGroup

        def add(self: ReplayBuffer, group: ReplayGroup) -> bool:
            with self._lock:
                self._waiting[group.group_id] = group
                return True

        ReplayBuffer.add = add


def failed_is_zero(module: str) -> None:
    """A reward that failed counts as 0."""
    if module == REWARD_API:
        make = group_queue._sample

        def sample(submission: wire.GroupSubmission, items: list[wire.ScoredItem]) -> wire.ScoredGroup:
            made = make(submission, items)
            rewards = {name: [reward or 0.0 for reward in column] for name, column in made.rewards.items()}
            return made.model_copy(update={"rewards": rewards})

        group_queue._sample = sample


BREAKS: dict[str, Callable[[str], None]] = {
    "acknowledge-first": acknowledge_first,
    "plain-xadd": plain_xadd,
    "trim-by-length": trim_by_length,
    "take-all": take_all,
    "failed-is-zero": failed_is_zero,
}
"""Called with the module that the process is about to run."""
