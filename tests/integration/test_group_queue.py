"""Groups from submission to delivery, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgpack
import numpy as np
import pytest
import redis

from lasro import wire
from lasro.errors import BudgetError, BusyError, ConflictError, NotFoundError, StorageError
from lasro.redis_store import keys
from lasro.redis_store.connection import connect_async
from lasro.redis_store.dead_letters import dead_letters, drop, named, retry
from lasro.redis_store.group_queue import Claim, GroupQueue, Limits, group_named
from lasro.redis_store.overview import run_figures, work_figures
from lasro.redis_store.registry import RewardRegistry
from lasro.redis_store.runs import delete_run
from lasro.redis_store.sample_stream import SampleStream
from lasro.redis_store.work_stream import GROUP, MAX_DELIVERIES, RETURNED, Entry

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
        seeds=[0, 1],
        draws=[0, 2],
        reference=[False, True],
        images=[b"a", b"b"],
        latents=wire.pack_tensors({"latents": latents_NCHW}),
        max_reward_calls=limit,
    )


def items(value: float) -> list[wire.ScoredItem]:
    good = wire.RewardValue(score=value, status=wire.Status.OK, version=4)
    bad = wire.RewardValue(score=None, status=wire.Status.TIMEOUT, error="late", version=4)
    return [wire.ScoredItem(scores={"r": score}, total=score.score) for score in (good, bad)]


def used_bytes(client: redis.Redis) -> int:
    info: Any = client.info("memory")
    return info["used_memory"]


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


def test_groups_that_share_a_round_trip_fail_alone(run_queue, redis_client: redis.Redis) -> None:
    """Bug: what goes wrong with one group fails those sent along with it; or a Redis that forgot the script does."""

    async def body(queue: GroupQueue) -> None:
        redis_client.set(keys.group(RUN, "g3"), "no hash")
        await queue.add(RUN, submission("first"), 2)
        await queue.add(RUN, submission("g5", side=8), 2)
        redis_client.script_flush()
        adding = (queue.add(RUN, submission(f"g{number}"), 2) for number in range(12))
        results = await asyncio.gather(*adding, return_exceptions=True)
        failed = {number: type(result) for number, result in enumerate(results) if isinstance(result, Exception)}
        assert failed == {3: StorageError, 5: ConflictError}
        assert redis_client.xlen(keys.WORK) == 12, "the first, g5 as it was first sent, and ten more"

    run_queue(body)


def test_a_full_queue_takes_no_more_but_knows_what_it_has(run_queue, redis_client: redis.Redis) -> None:
    """Bug: runs that outpace their scorers fill Redis, or a full queue refuses a group that is already in it."""

    async def body(queue: GroupQueue) -> None:
        limits = Limits(groups=1)
        await queue.add(RUN, submission("a"), 2, limits)
        with pytest.raises(BusyError, match="1 groups are queued"):
            await queue.add(RUN, submission("b"), 2, limits)
        assert redis_client.hget(keys.calls(RUN), "reserved") == b"2"
        assert (await queue.add(RUN, submission("a"), 2, limits)).state is wire.GroupState.QUEUED
        (claim,) = await queue.claim("one", 5, 0, 10_000)
        await queue.finish(claim, items(0.5))
        await queue.add(RUN, submission("b"), 2, limits)

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
    assert delivered.rewards == {"r": [0.25, None]}
    assert delivered.versions == {"r": 4}
    assert (delivered.round, delivered.index, delivered.policy_version) == (1, 2, 3)
    assert (delivered.seeds, delivered.draws, delivered.reference) == ([0, 1], [0, 2], [False, True])
    assert redis_client.hexists(keys.group(RUN, "g"), "payload") == 0
    assert redis_client.xlen(keys.WORK) == 0


def test_a_server_that_knows_its_entries_delivers_once_even_to_a_group_that_was_set_back(
    run_queue, redis_client: redis.Redis
) -> None:
    """Bug: the server's own idempotence (Redis 8.6) is not used, or is asked of servers that lack it.

    LASRO_REDIS_SERVER names the server that the suite runs on; the wheel's has none, and only our hash protects there.
    """
    info: Any = redis_client.info("server")
    native = info.get("server_name") != "valkey" and tuple(map(int, info["redis_version"].split(".")[:2])) >= (8, 6)

    async def body(queue: GroupQueue) -> None:
        for group_id, value in (("g", 0.5), ("g", 0.25), ("h", 0.75)):
            await queue.add(RUN, submission(group_id), 2)
            [claim] = await queue.claim("w", 1, 100, 60_000)
            assert await queue.finish(claim, items(value))
            redis_client.delete(keys.group(RUN, group_id))

    run_queue(body)
    rewards = [sample.rewards["r"][0] for _, sample in SampleStream(redis_client, RUN).read(9)]
    assert rewards == ([0.5, 0.75] if native else [0.5, 0.25, 0.75])
    redis_client.delete(keys.samples(RUN))  # as the deletion of a run does: its ids are free again
    run_queue(body)
    assert len(SampleStream(redis_client, RUN).read(9)) == (2 if native else 3)


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


def test_a_payload_of_another_schema_is_dead_lettered_with_the_reason(run_queue, redis_client: redis.Redis) -> None:
    """Bug: what cannot be read is claimed for ever, or dropped and sent again for ever, and nobody learns of it."""
    newer = msgpack.packb({**submission().model_dump(), "schema_version": 2})

    async def body(queue: GroupQueue) -> None:
        for group_id, payload in (("newer", newer), ("cut", wire.to_msgpack(submission("cut"))[:-7])):
            await queue.add(RUN, submission(group_id, limit=8), 2)
            redis_client.hset(keys.group(RUN, group_id), "payload", payload)
        await queue.add(RUN, submission("good", limit=8), 2)
        claims = await queue.claim("one", 5, 0, 10_000)
        assert [claim.submission.group_id for claim in claims] == ["good"]
        status = await queue.status(RUN, "newer")
        assert status.state is wire.GroupState.DEAD
        assert status.error is not None
        assert "schema_version" in status.error
        assert (await queue.status(RUN, "cut")).state is wire.GroupState.DEAD
        assert redis_client.hget(keys.calls(RUN), "reserved") == b"2"
        assert (await queue.add(RUN, submission("newer", limit=8), 2)).state is wire.GroupState.DEAD

    run_queue(body)
    assert redis_client.xlen(keys.DEAD_WORK) == 2
    assert redis_client.xlen(keys.WORK) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"junk": "x"},
        {"run": RUN},
        {"run": "a:b", "group": "g"},
        {"run": b"\xff\xfe", "group": "g"},
        {"run": RUN, "group": "g" * 100},
        {f"f{i}": "x" * 50 for i in range(9000)},
        {"reason": "theirs", "deliveries": "many"},
    ],
    ids=["junk", "half", "colon", "not-text", "long", "wide", "ours"],
)
def test_entries_that_name_no_group_are_dead_lettered(
    run_queue, redis_client: redis.Redis, fields: dict[str | bytes, Any]
) -> None:
    """Bug: a foreign entry on the stream ends the worker, and everything behind it waits for ever."""
    redis_client.xadd(keys.WORK, fields)  # pyright: ignore[reportArgumentType]

    async def body(queue: GroupQueue) -> None:
        await queue.add(RUN, submission(), 2)
        assert len(await queue.claim("one", 5, 0, 10_000)) == 1

    run_queue(body)
    (letter,) = dead_letters(redis_client)
    assert (letter.kind, letter.deliveries) == ("entry", 1)
    assert "expected run and group" in letter.reason
    assert not retry(redis_client, letter)
    drop(redis_client, letter)
    assert redis_client.xlen(keys.WORK) == 1
    assert dead_letters(redis_client) == []


def test_what_kills_its_workers_is_dead_lettered_after_five_deliveries(run_queue, redis_client: redis.Redis) -> None:
    """Bug: a group that no worker survives is handed from one to the next until none is left."""

    async def body(queue: GroupQueue) -> None:
        await queue.add(RUN, submission(limit=2), 2)
        claims = [claim for number in range(MAX_DELIVERIES) for claim in await queue.claim(f"victim-{number}", 5, 0, 0)]
        assert len(claims) == MAX_DELIVERIES
        assert await queue.claim("survivor", 5, 0, 0) == []
        status = await queue.status(RUN, "g")
        assert status.state is wire.GroupState.DEAD
        assert status.error == "delivered 5 times, and each time its worker died or hung"
        assert not await queue.is_queued(RUN, "g")
        assert not await queue.finish(claims[0], items(0.5))

    run_queue(body)
    (letter,) = dead_letters(redis_client)
    assert (letter.kind, letter.run, letter.group, letter.deliveries) == ("group", RUN, "g", MAX_DELIVERIES + 1)
    assert redis_client.hget(keys.calls(RUN), "reserved") == b"0"


def test_what_was_dead_lettered_is_scored_after_a_retry_and_submitted_again_after_a_drop(
    run_queue, redis_client: redis.Redis
) -> None:
    """Bug: a group that was dead-lettered is lost for good, or its id is taken for ever."""

    async def body(queue: GroupQueue) -> None:
        for group_id in ("kept", "dropped"):
            await queue.add(RUN, submission(group_id), 2)
        for entry in await queue.take("one", 5, 0, 10_000):
            await queue.dead_letter(entry, "for a test", group_named(entry.fields))
        kept, dropped = named(redis_client, [letter.id for letter in dead_letters(redis_client)])
        assert retry(redis_client, kept)
        assert not retry(redis_client, kept)
        drop(redis_client, dropped)
        with pytest.raises(NotFoundError):
            named(redis_client, [kept.id])
        with pytest.raises(NotFoundError):
            await queue.status(RUN, "dropped")
        status = await queue.status(RUN, "kept")
        assert (status.state, status.error) == (wire.GroupState.QUEUED, None)
        (claim,) = await queue.claim("two", 5, 0, 10_000)
        assert await queue.finish(claim, items(0.5))
        assert (await queue.add(RUN, submission("dropped"), 2)).state is wire.GroupState.QUEUED

    run_queue(body)
    assert len(SampleStream(redis_client, RUN).read(5)) == 1


def test_what_is_given_back_does_not_count_as_a_delivery(run_queue) -> None:
    """Bug: after five rolling restarts, or five hiccups of Redis, a healthy group is taken for a poisonous one."""

    async def body(queue: GroupQueue) -> None:
        await queue.add(RUN, submission(), 2)
        for number in range(2 * MAX_DELIVERIES):
            (claim,) = await queue.claim(f"leaving-{number}", 5, 0, 3_600_000)
            await queue.leave(f"leaving-{number}")
        for _ in range(2 * MAX_DELIVERIES):
            (claim,) = await queue.claim("hiccup", 5, 0, 0)
            await queue.put_back("hiccup", claim.entry_id)
        assert await queue.claim("other", 5, 0, 10_000) == []
        (entry,) = await queue.take("other", 5, 0, 0)
        assert entry.deliveries == 1

    run_queue(body)


def test_who_leaves_takes_its_name_along(run_queue, redis_client: redis.Redis) -> None:
    """Bug: each restart leaves a worker's name behind; or removing it removes what it still held."""

    async def body(queue: GroupQueue) -> None:
        await queue.add(RUN, submission(), 2)
        await queue.claim("idle", 5, 0, 10_000)
        await queue.claim("leaving", 5, 0, 0)
        await queue.leave("leaving")
        await queue.leave("idle")
        work = work_figures(redis_client)
        assert [(worker.name, worker.claims) for worker in work.workers] == [(RETURNED, 1)]
        assert (work.waiting, work.claimed, work.dead) == (0, 1, 0)

    run_queue(body)


def test_a_worker_learns_what_it_no_longer_holds(run_queue, redis_client: redis.Redis) -> None:
    """Bug: a worker that was away takes back what another has taken over, and both are paid for."""

    async def body(queue: GroupQueue) -> None:
        for group_id in ("a", "b", "c"):
            await queue.add(RUN, submission(group_id), 2)
        claims = await queue.claim("slow", 5, 0, 10_000)
        ids = [claim.entry_id for claim in claims]
        (taken,) = await queue.claim("quick", 1, 0, 0)
        await queue.finish(claims[1], items(0.5))
        assert await queue.keep("slow", ids) == {taken.entry_id, ids[1]}
        assert await queue.keep("quick", [taken.entry_id]) == set()

    run_queue(body)


def test_stale_work_behind_much_living_work_is_found(run_queue, redis_client: redis.Redis) -> None:
    """Bug: only the first entries are ever looked at, so what a dead worker held behind them waits for long."""

    async def body(queue: GroupQueue) -> None:
        for number in range(40):
            await queue.add(RUN, submission(f"g{number}"), 2)
        assert len(await queue.claim("living", 30, 0, 600_000)) == 30
        dead = [claim.entry_id for claim in await queue.claim("dead", 10, 0, 600_000)]
        for entry_id in dead:
            redis_client.xclaim(keys.WORK, GROUP, "dead", 0, [entry_id], idle=3_600_000, justid=True)
        found = [claim.entry_id for _ in range(20) for claim in await queue.claim("heir", 1, 0, 600_000)]
        assert found == dead

    run_queue(body)


def test_a_run_whose_trainer_does_not_read_gets_no_more_groups(run_queue, redis_client: redis.Redis) -> None:
    """Bug: groups of a run without a trainer fill Redis; or a trainer that holds its samples stops its own run."""

    async def body(queue: GroupQueue) -> None:
        limits = Limits(unread_samples=2)
        for group_id in ("a", "b"):
            await queue.add(RUN, submission(group_id), 2, limits)
            (claim,) = await queue.claim("one", 5, 0, 10_000)
            await queue.finish(claim, items(0.5))
        with pytest.raises(BusyError, match="2 scored groups that its trainer has not read"):
            await queue.add(RUN, submission("c"), 2, limits)
        await queue.add("another-run", submission("c"), 2, limits)
        assert len(SampleStream(redis_client, RUN).read(5)) == 2
        await queue.add(RUN, submission("c"), 2, limits)

    run_queue(body)


def test_two_runs_do_not_touch_each_other(run_queue, redis_client: redis.Redis) -> None:
    """Bug: groups of the same id in two runs are one, or deleting a run takes another's with it."""

    async def body(queue: GroupQueue) -> None:
        for run in ("first", "first-2"):
            for group_id in ("scored", "waits", "dead"):
                await queue.add(run, submission(group_id), 2)
        entries = await queue.take("one", 10, 0, 10_000)
        for entry in entries:
            run, group_id = group_named(entry.fields) or ("", "")
            if group_id == "dead":
                await queue.dead_letter(entry, "for a test", (run, group_id))
            elif group_id == "scored":
                await queue.finish(Claim(entry.id, run, submission("scored")), items(0.5))
        await queue.leave("one")
        delete_run(redis_client, "first")
        assert [figures.run for figures in run_figures(redis_client)] == ["first-2"]
        (figures,) = run_figures(redis_client)
        assert (figures.groups, figures.queued, figures.unread) == (3, 1, 1)
        assert [letter.run for letter in dead_letters(redis_client)] == ["first-2"]
        assert [claim.run for claim in await queue.claim("two", 10, 0, 10_000)] == ["first-2"]

    run_queue(body)
    assert redis_client.keys(f"{keys.PREFIX}run:first:*") == []


def test_a_deleted_run_leaves_no_key_and_no_memory(run_queue, redis_client: redis.Redis) -> None:
    """Bug: a run that was removed goes on taking memory and room in the queue."""

    async def body(queue: GroupQueue) -> None:
        await queue.add("warm-up", submission(), 2)
        delete_run(redis_client, "warm-up")
        before = used_bytes(redis_client)
        for number in range(50):
            await queue.add(RUN, submission(f"g{number}", side=64), 2)
        for claim in await queue.claim("one", 20, 0, 10_000):
            await queue.finish(claim, items(0.5))
        SampleStream(redis_client, RUN).read(5)
        delete_run(redis_client, RUN)
        await queue.leave("one")
        after = used_bytes(redis_client)
        assert after - before < 300_000

    run_queue(body)
    assert redis_client.keys("*run:*") == []
    assert redis_client.xlen(keys.WORK) == 0


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


def test_an_entry_id_that_redis_gave_twice_costs_no_group(run_queue, redis_client: redis.Redis) -> None:
    """Bug: with its clock set back, Redis gives ids again that it lost in a power cut. A worker that finished, or
    dead-lettered, a group of before took the entry of another group out of the queue: that was never scored."""

    async def body(queue: GroupQueue) -> None:
        await queue.add(RUN, submission("before"), 2)
        [claim] = await queue.claim("one", 1, 0, 10_000)
        redis_client.delete(keys.WORK)
        redis_client.xadd(keys.WORK, {"run": RUN, "group": "after"}, id=claim.entry_id)
        redis_client.xgroup_create(keys.WORK, GROUP, id="0")
        await queue.dead_letter(Entry(claim.entry_id, {}, 1), "for a test", (RUN, "before"))
        assert await queue.finish(claim, items(0.5))
        assert redis_client.xlen(keys.WORK) == redis_client.xlen(keys.samples(RUN)) == 1
        assert redis_client.xlen(keys.DEAD_WORK) == 0

    run_queue(body)
