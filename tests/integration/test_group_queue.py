"""Groups from submission to delivery, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import redis

from lasro import wire
from lasro.errors import BudgetError, BusyError, ConflictError, NotFoundError, StorageError
from lasro.redis_store import keys
from lasro.redis_store.connection import connect_async
from lasro.redis_store.group_queue import GroupQueue
from lasro.redis_store.registry import RewardRegistry
from lasro.redis_store.sample_stream import SampleStream

RUN = "queue-tests"


def submission(group_id: str = "g", side: int = 4, limit: int | None = None) -> wire.GroupSubmission:
    latents_NCHW = np.random.default_rng(0).standard_normal((2, 4, side, side)).astype(np.float32)
    return wire.GroupSubmission(
        group_id=group_id,
        round=1,
        index=2,
        prompt="p",
        policy_version=3,
        rewards=["r"],
        stages=[1, 2],
        images=[b"a", b"b"],
        latents=wire.pack_tensors({"latents": latents_NCHW}),
        max_reward_calls=limit,
    )


def items(value: float) -> list[wire.ScoredItem]:
    good = wire.RewardScore(score=value, status=wire.Status.OK, version=4)
    bad = wire.RewardScore(score=None, status=wire.Status.TIMEOUT, error="late", version=4)
    return [wire.ScoredItem(scores={"r": score}, total=score.score) for score in (good, bad)]


@pytest.fixture
def run_queue(redis_url: str, redis_client: redis.Redis) -> Callable[[Callable[[GroupQueue], Awaitable[None]]], None]:
    """Runs an async test body with a queue on an emptied server."""

    def run(body: Callable[[GroupQueue], Awaitable[None]]) -> None:
        async def main() -> None:
            async with connect_async(redis_url) as client:
                await body(GroupQueue(client))

        asyncio.run(main())

    return run


def test_a_group_sent_many_times_is_queued_once(run_queue, redis_client: redis.Redis) -> None:
    """Bug: a client that posts again after a lost reply pays for and trains on the group twice."""

    async def body(queue: GroupQueue) -> None:
        replies = await asyncio.gather(*(queue.add(RUN, submission(), 2) for _ in range(20)))
        assert {reply.state for reply in replies} == {wire.GroupState.QUEUED}
        assert redis_client.xlen(keys.WORK) == 1
        with pytest.raises(ConflictError, match="other content"):
            await queue.add(RUN, submission(side=5), 2)
        assert redis_client.hget(keys.calls(RUN), "reserved") == b"2"

    run_queue(body)


def test_a_full_queue_takes_no_more_but_knows_what_it_has(run_queue, redis_client: redis.Redis) -> None:
    """Bug: runs that outpace their scorers fill Redis, or a full queue refuses a group that is already in it."""

    async def body(queue: GroupQueue) -> None:
        await queue.add(RUN, submission("a"), 2, max_groups=1)
        with pytest.raises(BusyError, match="1 groups are queued"):
            await queue.add(RUN, submission("b"), 2, max_groups=1)
        assert redis_client.hget(keys.calls(RUN), "reserved") == b"2"
        assert (await queue.add(RUN, submission("a"), 2, max_groups=1)).state is wire.GroupState.QUEUED
        (claim,) = await queue.claim("one", 5, 0, 10_000)
        await queue.finish(claim, items(0.5))
        await queue.add(RUN, submission("b"), 2, max_groups=1)

    run_queue(body)


def test_finish_delivers_once_and_forgets_the_images(run_queue, redis_client: redis.Redis) -> None:
    """Bug: two workers that scored the same group deliver it twice, or its images stay in Redis."""

    async def body(queue: GroupQueue) -> None:
        await queue.add(RUN, submission(), 2)
        (claim,) = await queue.claim("one", 5, 0, 10_000)
        assert await queue.claim("two", 5, 0, 10_000) == []
        (stolen,) = await queue.claim("two", 5, 0, 0)
        assert await queue.finish(claim, items(0.25))
        assert not await queue.finish(stolen, items(0.75))
        status = await queue.status(RUN, "g")
        assert status.items == items(0.25)
        assert (await queue.add(RUN, submission(), 2)).state is wire.GroupState.SCORED

    run_queue(body)
    stream = SampleStream(redis_client, RUN)
    ((_, delivered),) = stream.read(5)
    assert delivered.scores == {"r": [0.25, None]}
    assert delivered.versions == {"r": 4}
    assert (delivered.round, delivered.index, delivered.policy_version) == (1, 2, 3)
    assert redis_client.hexists(keys.group(RUN, "g"), "payload") == 0
    assert redis_client.xlen(keys.WORK) == 0


def test_large_latents_travel_beside_the_stream_and_go_with_the_acknowledgement(
    run_queue, redis_client: redis.Redis
) -> None:
    """Bug: entries over 65,000 bytes waste a quarter of Redis' memory; or their blobs are never freed."""
    large = submission(side=128)

    async def body(queue: GroupQueue) -> None:
        await queue.add(RUN, large, 2)
        (claim,) = await queue.claim("one", 5, 0, 10_000)
        await queue.finish(claim, items(0.5))

    run_queue(body)
    found: Any = redis_client.xrange(keys.samples(RUN))
    ((_, fields),) = found
    assert sum(len(value) for value in fields.values()) < 65_000
    stream = SampleStream(redis_client, RUN)
    ((entry_id, delivered),) = stream.read(5)
    assert delivered.latents == large.latents
    stream.ack([entry_id])
    assert redis_client.keys(keys.blob(RUN, "*")) == []
    assert redis_client.scard(keys.blobs(RUN)) == 0


def test_the_budget_holds_for_groups_accepted_side_by_side(run_queue) -> None:
    """Bug: groups checked one by one against what is spent so far overrun the limit together."""

    async def body(queue: GroupQueue) -> None:
        sent = [queue.add(RUN, submission(f"g{i}", limit=5), 2) for i in range(6)]
        results = await asyncio.gather(*sent, return_exceptions=True)
        refused = [result for result in results if isinstance(result, BudgetError)]
        assert len(refused) == 4
        assert "max_reward_calls 5" in str(refused[0])
        lost = results.index(refused[0])
        with pytest.raises(NotFoundError):
            await queue.status(RUN, f"g{lost}")
        assert (await queue.add(RUN, submission(f"g{lost}", limit=6), 2)).state is wire.GroupState.QUEUED

    run_queue(body)


def test_calls_are_counted_when_made_and_cache_hits_are_not(run_queue) -> None:
    """Bug: reserved calls that the cache saved stay taken, or a second scoring after a crash is free."""

    async def body(queue: GroupQueue) -> None:
        await queue.add(RUN, submission(limit=3), 2)
        (claim,) = await queue.claim("one", 5, 0, 10_000)
        await queue.spend(claim, 1)
        await queue.spend(claim, 2)  # a second scoring: one from the reservation, one more
        with pytest.raises(BudgetError):
            await queue.spend(claim, 1)
        await queue.finish(claim, items(0.5))
        assert (await queue.status(RUN, "g")).reward_calls == 3
        with pytest.raises(BudgetError):
            await queue.add(RUN, submission("h", limit=4), 2)
        await queue.add(RUN, submission("h", limit=5), 2)
        (claim,) = await queue.claim("one", 5, 0, 10_000)
        await queue.finish(claim, items(0.5))  # all from the cache
        await queue.add(RUN, submission("i", limit=5), 2)

    run_queue(body)


def test_work_of_a_dead_or_leaving_worker_is_taken_over(run_queue) -> None:
    """Bug: groups claimed by a killed worker are never scored; or a living one is robbed of its work."""

    async def body(queue: GroupQueue) -> None:
        await queue.add(RUN, submission(), 2)
        assert len(await queue.claim("dead", 5, 0, 10_000)) == 1
        await asyncio.sleep(0.12)
        (claim,) = await queue.claim("heir", 5, 0, 100)
        await asyncio.sleep(0.12)
        await queue.keep("heir", [claim.entry_id])
        assert await queue.claim("thief", 5, 0, 100) == []
        await queue.leave("heir")
        assert len(await queue.claim("next", 5, 0, 3_600_000)) == 1

    run_queue(body)


def test_a_group_of_a_deleted_run_is_dropped(run_queue, redis_client: redis.Redis) -> None:
    """Bug: the queue delivers into a run that was removed, so its name comes back half alive."""

    async def body(queue: GroupQueue) -> None:
        await queue.add(RUN, submission("g"), 2)
        await queue.add(RUN, submission("h"), 2)
        (claim,) = await queue.claim("one", 1, 0, 10_000)
        SampleStream(redis_client, RUN).delete()
        assert not await queue.finish(claim, items(0.5))
        assert await queue.claim("one", 5, 0, 10_000) == []

    run_queue(body)
    assert redis_client.keys(f"{keys.PREFIX}run:*") == []
    assert redis_client.xlen(keys.WORK) == 0


def test_an_unreadable_payload_is_dropped_and_may_be_sent_again(run_queue, redis_client: redis.Redis) -> None:
    """Bug: a damaged payload is claimed, fails and is claimed again for ever."""

    async def body(queue: GroupQueue) -> None:
        await queue.add(RUN, submission(limit=2), 2)
        redis_client.hset(keys.group(RUN, "g"), "payload", b"\xc1")
        assert await queue.claim("one", 5, 0, 10_000) == []
        with pytest.raises(NotFoundError):
            await queue.status(RUN, "g")
        await queue.add(RUN, submission(limit=2), 2)
        assert len(await queue.claim("one", 5, 0, 10_000)) == 1

    run_queue(body)


def test_versions_of_rewards_grow_and_are_never_used_twice(redis_url: str, redis_client: redis.Redis) -> None:
    """Bug: a reward deleted and registered again gets version 1 again, and old cached scores come back."""

    async def body() -> None:
        async with connect_async(redis_url) as client:
            registry = RewardRegistry(client)
            spec = wire.RewardSpec(name="r", url="https://a.example/", protocol=wire.Protocol.NATIVE)
            results = await asyncio.gather(
                *(registry.put(spec, replace=False) for _ in range(5)), return_exceptions=True
            )
            assert sum(isinstance(result, ConflictError) for result in results) == 4
            assert (await registry.put(spec, replace=True))[0].version == 1
            other = spec.model_copy(update={"max_batch": 4})
            assert (await registry.put(other, replace=True))[0].version == 2
            await registry.delete("r")
            with pytest.raises(NotFoundError):
                await registry.get("r")
            registration, is_new = await registry.put(spec, replace=False)
            assert (registration.version, is_new) == (3, True)
            assert await registry.list() == [registration]

    asyncio.run(body())


def test_a_queue_without_its_consumer_group_makes_it_again(run_queue, redis_client: redis.Redis) -> None:
    """Bug: a worker dies for good when Redis was emptied or restarted without its data."""

    async def body(queue: GroupQueue) -> None:
        await queue.add(RUN, submission("g"), 2)
        assert len(await queue.claim("one", 5, 0, 10_000)) == 1
        redis_client.flushall()
        with pytest.raises(StorageError, match="NOGROUP"):
            await queue.leave("one")
        await queue.add(RUN, submission("g"), 2)
        assert len(await queue.claim("one", 5, 0, 10_000)) == 1

    run_queue(body)
