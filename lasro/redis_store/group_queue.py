"""Groups on their way from submission to the sample stream: queued, claimed, scored, delivered once.

A group is a hash; its place in the queue is an entry of one work stream that all scoring workers share through a
consumer group. A worker that dies leaves its entries pending; another claims them once they have been idle for a
while. Scoring may thus happen twice after a crash, `finish` takes effect once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio
from pydantic import TypeAdapter

from lasro import wire
from lasro.errors import BudgetError, BusyError, ConflictError, NotFoundError, WireError
from lasro.redis_store import keys
from lasro.redis_store.connection import MAX_BLOCK_MS, redis_errors, script

GROUP = "scorers"
MAX_ENTRY_BYTES = 65_000
"""Of a sample on the stream: above it Redis' allocator wastes a quarter, so larger ones become blobs."""
ENTRY_OVERHEAD_BYTES = 256
RELEASED_MS = 24 * 3600 * 1000
"""Idle time given to entries that their worker gives up: more than any `stale_ms`."""
_ITEMS = TypeAdapter(list[wire.ScoredItem])


@dataclass(frozen=True)
class Claim:
    """One group that a worker has taken."""

    entry_id: str
    run: str
    submission: wire.GroupSubmission


class GroupQueue:
    """Every method may raise UnreachableError or StorageError."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._redis = client
        self._add = client.register_script(script("add_group"))
        self._spend = client.register_script(script("spend_calls"))
        self._finish = client.register_script(script("finish_group"))
        self._drop = client.register_script(script("drop_work"))

    async def add(
        self, run: str, submission: wire.GroupSubmission, calls_needed: int, max_groups: int | None = None
    ) -> wire.GroupAccepted:
        """Queue a group unless it is there already.

        Raises ConflictError when its id is taken by other content, BudgetError when the `calls_needed` at most
        would go over `submission.max_reward_calls`, and BusyError when `max_groups` of all runs are queued; then
        nothing is queued.
        """
        payload = wire.to_msgpack(submission)
        group_id, limit = submission.group_id, submission.max_reward_calls
        with redis_errors():
            reply: Any = await self._add(
                keys=[keys.group(run, group_id), keys.WORK, keys.groups(run), keys.calls(run)],
                args=[
                    *(_digest(submission), payload, run, group_id, calls_needed),
                    *("" if most is None else most for most in (limit, max_groups)),
                ],
            )
        outcome, state, spent, reserved = reply
        if outcome == b"conflict":
            raise ConflictError(f"group {group_id}: submitted before with other content; give it an id of its own")
        if outcome == b"budget":
            raise BudgetError(
                f"group {group_id}: needs up to {calls_needed} reward calls, but of max_reward_calls {limit} "
                f"{spent} are spent and {reserved} reserved; raise the limit to go on"
            )
        if outcome == b"full":
            raise BusyError(
                f"group {group_id}: {max_groups} groups are queued; try again later or raise LASRO_MAX_GROUPS"
            )
        return wire.GroupAccepted(group_id=group_id, state=wire.GroupState(state.decode()), reward_calls=spent)

    async def status(self, run: str, group_id: str) -> wire.GroupStatus:
        """State and, once there, scores of a group; raises NotFoundError."""
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.hmget(keys.group(run, group_id), ["state", "items"])
                pipeline.hget(keys.calls(run), "spent")
                (state, items), spent = await pipeline.execute()
        if state is None:
            raise NotFoundError(f"group {group_id} of run {run}: unknown; submit it again")
        return wire.GroupStatus(
            group_id=group_id,
            state=wire.GroupState(state.decode()),
            items=None if items is None else _ITEMS.validate_json(items),
            reward_calls=int(spent or 0),
        )

    async def is_queued(self, run: str, group_id: str) -> bool:
        """Whether the group waits for its scores; false once it is scored, and when it is unknown."""
        with redis_errors():
            state: Any = await self._redis.hget(keys.group(run, group_id), "state")  # pyright: ignore[reportGeneralTypeIssues]
        return state == wire.GroupState.QUEUED.value.encode()

    async def claim(self, consumer: str, count: int, block_ms: int, stale_ms: int) -> list[Claim]:
        """Take up to `count` groups: such as other workers left untouched for `stale_ms` first, then new ones.

        Waits up to `block_ms` (at most MAX_BLOCK_MS) when there is none. Entries whose group is gone, or cannot be
        read, are dropped; who submitted the latter finds them unknown and submits them again.
        """
        with redis_errors():
            try:
                entries = await self._take(consumer, count, block_ms, stale_ms)
            except redis.ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                await self._create_group()
                entries = await self._take(consumer, count, block_ms, stale_ms)
            claims = [await self._load(entry_id.decode(), fields) for entry_id, fields in entries]
        return [claim for claim in claims if claim is not None]

    async def _take(self, consumer: str, count: int, block_ms: int, stale_ms: int) -> list[Any]:
        stale: Any = await self._redis.xautoclaim(keys.WORK, GROUP, consumer, stale_ms, "0-0", count=count)
        return stale[1] or await self._read_new(consumer, count, min(block_ms, MAX_BLOCK_MS))

    async def _read_new(self, consumer: str, count: int, block_ms: int) -> list[Any]:
        reply: Any = await self._redis.xreadgroup(
            GROUP, consumer, {keys.WORK: ">"}, count=count, block=block_ms or None
        )
        streams = reply.values() if isinstance(reply, dict) else [entries for _, entries in reply or []]
        return [entry for entries in streams for entry in entries]

    async def _create_group(self) -> None:
        try:
            await self._redis.xgroup_create(keys.WORK, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def _load(self, entry_id: str, fields: dict[bytes, bytes]) -> Claim | None:
        run, group_id = fields[b"run"].decode(), fields[b"group"].decode()
        payload: Any = await self._redis.hget(keys.group(run, group_id), "payload")  # pyright: ignore[reportGeneralTypeIssues]
        if payload is not None:
            try:
                return Claim(entry_id, run, wire.from_msgpack(wire.GroupSubmission, payload))
            except WireError:
                pass
        await self._drop(
            keys=[keys.group(run, group_id), keys.WORK, keys.groups(run), keys.calls(run)],
            args=[GROUP, entry_id, group_id],
        )
        return None

    async def keep(self, consumer: str, entry_ids: list[str]) -> None:
        """Tell the other workers that these entries are still being worked on."""
        if entry_ids:
            with redis_errors():
                await self._redis.xclaim(keys.WORK, GROUP, consumer, 0, list(entry_ids), justid=True)

    async def leave(self, consumer: str) -> None:
        """Stop working under this name: what is unfinished may be claimed by others at once."""
        with redis_errors():
            pending: Any = await self._redis.xpending_range(keys.WORK, GROUP, "-", "+", 10_000, consumername=consumer)
            entry_ids = [entry["message_id"] for entry in pending]
            if entry_ids:
                await self._redis.xclaim(keys.WORK, GROUP, consumer, 0, entry_ids, idle=RELEASED_MS, justid=True)
            else:
                await self._redis.xgroup_delconsumer(keys.WORK, GROUP, consumer)

    async def spend(self, claim: Claim, calls: int) -> None:
        """Count calls just before they are made; raises BudgetError when the run's limit forbids them."""
        limit = claim.submission.max_reward_calls
        with redis_errors():
            allowed: Any = await self._spend(
                keys=[keys.group(claim.run, claim.submission.group_id), keys.calls(claim.run)],
                args=[calls, "" if limit is None else limit],
            )
        if not allowed:
            raise BudgetError(f"{calls} more reward calls would go over max_reward_calls {limit}")

    async def finish(self, claim: Claim, items: list[wire.ScoredItem]) -> bool:
        """Store the scores and deliver the sample; false when that was done before or the run is gone."""
        run, group_id = claim.run, claim.submission.group_id
        sample = wire.to_msgpack(_sample(claim.submission, items))
        inline = len(sample) + ENTRY_OVERHEAD_BYTES <= MAX_ENTRY_BYTES
        sha256 = hashlib.sha256(sample).hexdigest()
        with redis_errors():
            finished: Any = await self._finish(
                keys=[
                    keys.group(run, group_id),
                    keys.WORK,
                    keys.calls(run),
                    keys.samples(run),
                    keys.blob(run, sha256),
                    keys.blobs(run),
                ],
                args=[GROUP, claim.entry_id, _ITEMS.dump_json(items), sample, "" if inline else sha256],
            )
        return bool(finished)


def _digest(submission: wire.GroupSubmission) -> str:
    """Of what makes two submissions the same group: all but the limit, which may be raised between two tries."""
    content = submission.model_copy(update={"max_reward_calls": None})
    return hashlib.sha256(wire.to_msgpack(content)).hexdigest()


def _sample(submission: wire.GroupSubmission, items: list[wire.ScoredItem]) -> wire.Sample:
    def column(name: str) -> list[float | None]:
        return [item.scores[name].score for item in items]

    def version(name: str) -> int:
        return max(item.scores[name].version for item in items)

    return wire.Sample(
        group_id=submission.group_id,
        round=submission.round,
        index=submission.index,
        prompt=submission.prompt,
        policy_version=submission.policy_version,
        stages=submission.stages,
        scores={name: column(name) for name in submission.rewards},
        versions={name: version(name) for name in submission.rewards},
        latents=submission.latents,
    )
