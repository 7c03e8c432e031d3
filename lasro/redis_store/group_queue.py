"""Groups from submission to the sample stream: queued, claimed, scored, delivered once.

A group is a hash; an entry of the work stream is its place in the queue. After a crash a group may be scored twice, but
only the first `finish` takes effect.
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import redis
from pydantic import TypeAdapter
from redis.exceptions import NoScriptError

from lasro import wire
from lasro.errors import BudgetError, BusyError, ConflictError, NotFoundError, WireError
from lasro.redis_store import keys, sample_stream
from lasro.redis_store.clients import AsyncClient
from lasro.redis_store.connection import redis_errors
from lasro.redis_store.lua import script
from lasro.redis_store.pipelined_batcher import PipelinedBatcher
from lasro.redis_store.work_stream import GROUP, MAX_DELIVERIES, Entry, Fields, WorkStream

log = logging.getLogger("lasro.redis_store")
MAX_ENTRY_BYTES = 65_000
"""Of a sample on the stream: above it Redis' allocator wastes a quarter, so larger ones become blobs."""
ENTRY_OVERHEAD_BYTES = 256
TRIP_KIB = 320
"""Most KiB of groups added in one round trip. Two are in flight: while Redis reads one, the other is written."""
NAME = re.compile(wire.NAME_PATTERN)
_ITEMS = TypeAdapter(list[wire.ScoredItem])


@dataclass(frozen=True)
class Claim:
    """One group that a worker has taken."""

    entry_id: str
    run: str
    submission: wire.GroupSubmission


class _Adding(NamedTuple):
    """Keys and arguments for one call of the script `add_group`."""

    keys: list[str]
    arguments: list[Any]

    def weight(self) -> int:
        """KiB of payload."""
        return 1 + len(self.arguments[1]) // 1024


@dataclass(frozen=True)
class Limits:
    """How much may wait; beyond it `add` raises BusyError. None: no limit."""

    groups: int | None = None
    """Groups of all runs that wait to be scored or are dead-lettered."""
    unread_samples: int | None = None
    """Scored groups of the run that its trainer has not read."""


NO_LIMITS = Limits()


class GroupQueue(WorkStream):
    """Every method may raise UnreachableError or StorageError."""

    def __init__(self, client: AsyncClient) -> None:
        super().__init__(client)
        self._add = client.register_script(script("add_group"))
        self._adding: PipelinedBatcher[_Adding, Any] = PipelinedBatcher(
            self._add_all, _Adding.weight, TRIP_KIB, max_concurrent=2
        )
        self._spend = client.register_script(script("spend_calls"))
        self._finish = client.register_script(script("finish_group"))

    async def add(
        self, run: str, submission: wire.GroupSubmission, calls_needed: int, limits: Limits = NO_LIMITS
    ) -> wire.GroupAccepted:
        """Queue a group unless it is there already.

        Raises ConflictError when its id is taken by other content, BudgetError when the `calls_needed` at most
        would go over `submission.max_reward_calls`, and BusyError beyond `limits`; then nothing is queued.
        """
        payload = wire.to_msgpack(submission)
        group_id, most_calls = submission.group_id, submission.max_reward_calls
        most = ("" if limit is None else limit for limit in (most_calls, limits.groups, limits.unread_samples))
        run_keys = [keys.groups(run), keys.calls(run), keys.samples(run), keys.RUNS]
        adding = _Adding(
            [keys.group(run, group_id), keys.WORK, keys.DEAD_WORK, *run_keys],
            [_digest(submission, payload), payload, run, group_id, calls_needed, *most, sample_stream.GROUP],
        )
        with redis_errors():
            reply = await self._adding.get(adding)
            if isinstance(reply, redis.RedisError):  # of this group alone
                raise reply
        outcome, state, spent, reserved = reply
        if outcome == b"conflict":
            raise ConflictError(f"group {group_id}: submitted before with other content; give it an id of its own")
        if outcome == b"budget":
            raise BudgetError(
                f"group {group_id}: needs up to {calls_needed} reward calls, but of max_reward_calls {most_calls} "
                f"{spent} are spent and {reserved} reserved; raise the limit to go on"
            )
        if outcome == b"full":
            raise BusyError(
                f"group {group_id}: {limits.groups} groups are queued or dead-lettered, see `lasro queue ls`; "
                "try again later or raise LASRO_MAX_GROUPS"
            )
        if outcome == b"behind":
            raise BusyError(
                f"group {group_id}: run {run} has {spent} scored groups that its trainer has not read; "
                "is one running? Try again later or raise LASRO_MAX_LAG"
            )
        return wire.GroupAccepted(group_id=group_id, state=wire.GroupState(state.decode()), reward_calls=spent)

    async def _add_all(self, groups: list[_Adding]) -> list[Any]:
        """Per group the script's reply, or the error that it raised."""
        replies: list[Any] = await self._added(groups)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            await self._redis.script_load(self._add.script)
            return await self._added(groups)  # those that were added by the first try are known to the second
        return replies

    async def _added(self, groups: list[_Adding]) -> list[Any]:
        commands = [("EVALSHA", self._add.sha, len(group.keys), *group.keys, *group.arguments) for group in groups]
        return await self._redis.pipelined(commands, raise_on_error=False)

    async def status(self, run: str, group_id: str) -> wire.GroupStatus:
        """State and, once there, scores of a group; raises NotFoundError."""
        with redis_errors():
            (state, items, reason), spent = await self._redis.pipelined(
                [("HMGET", keys.group(run, group_id), "state", "items", "reason"), ("HGET", keys.calls(run), "spent")]
            )
        if state is None:
            raise NotFoundError(f"group {group_id} of run {run}: unknown; submit it again")
        return wire.GroupStatus(
            group_id=group_id,
            state=wire.GroupState(state.decode()),
            items=None if items is None else _ITEMS.validate_json(items),
            error=None if reason is None else reason.decode(),
            reward_calls=int(spent or 0),
        )

    async def is_queued(self, run: str, group_id: str) -> bool:
        """Whether the group waits for its scores; false once it is scored or dead-lettered, and where it is unknown."""
        with redis_errors():
            state: Any = await self._redis.hget(keys.group(run, group_id), "state")  # pyright: ignore[reportGeneralTypeIssues]
        return state == wire.GroupState.QUEUED.value.encode()

    async def claim(self, consumer: str, count: int, block_ms: int, stale_ms: int) -> list[Claim]:
        """Claim up to `count` groups, as `take` does.

        A group that cannot be read, or was delivered MAX_DELIVERIES times unsuccessfully, is dead-lettered with the
        reason. Entries whose group is gone are deleted.
        """
        entries = await self.take(consumer, count, block_ms, stale_ms)
        claims = [await self._load(entry) for entry in entries]
        return [claim for claim in claims if claim is not None]

    async def _load(self, entry: Entry) -> Claim | None:
        group = group_named(entry.fields)
        if group is None:
            log.warning("work entry %s is dead-lettered: it names no group", entry.id)
            await self.dead_letter(entry, f"got the fields {sorted(entry.fields)[:8]}, expected run and group", None)
            return None
        with redis_errors():
            payload: Any = await self._redis.hget(keys.group(*group), "payload")  # pyright: ignore[reportGeneralTypeIssues]
        reason = "the group is gone"
        if payload is not None and entry.deliveries > MAX_DELIVERIES:
            reason = f"delivered {MAX_DELIVERIES} times, and each time its worker died or hung"
        elif payload is not None:
            try:
                return Claim(entry.id, group[0], wire.from_msgpack(wire.GroupSubmission, payload))
            except WireError as error:
                reason = str(error)
        log.warning("group %s of run %s leaves the queue unscored: %s", group[1], group[0], reason)
        await self.dead_letter(entry, reason, group)
        return None

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
                args=[GROUP, claim.entry_id, _ITEMS.dump_json(items), sample, "" if inline else sha256, group_id, run],
            )
        return bool(finished)


def group_named(fields: Fields) -> tuple[str, str] | None:
    """Run and group id of a work entry; None where it names none that could exist."""
    names = [fields.get(key, b"").decode("ascii", "replace") for key in (b"run", b"group")]
    return (names[0], names[1]) if all(NAME.fullmatch(name) for name in names) else None


def _digest(submission: wire.GroupSubmission, payload: bytes) -> str:
    """SHA-256 of a submission without its limit, which a client may raise before it submits the same group again."""
    if submission.max_reward_calls is not None:
        payload = wire.to_msgpack(submission.model_copy(update={"max_reward_calls": None}))
    return hashlib.sha256(payload).hexdigest()


def _sample(submission: wire.GroupSubmission, items: list[wire.ScoredItem]) -> wire.ScoredGroup:
    return wire.ScoredGroup(
        group_id=submission.group_id,
        round=submission.round,
        index=submission.index,
        prompt=submission.prompt,
        policy_version=submission.policy_version,
        stages=submission.stages,
        seeds=submission.seeds,
        draws=submission.draws,
        reference=submission.reference,
        rewards={name: wire.scores_of(items, name) for name in submission.rewards},
        versions={name: wire.version_of(items, name) for name in submission.rewards},
        latents=submission.latents,
    )
