"""Micro-batching: whatever is queued by whom, every image gets its own answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lasro.wire import Status
from lasro_reward_api.deadline import Caller, Deadline
from lasro_reward_api.endpoints.batching import Batcher, CallOutcome, Item, ItemOutcome
from lasro_reward_api.protocols.base import Batch, HttpRequest

MAX_BATCH, SLOTS = 4, 2


def items(request: int, count: int, metadata: object = None) -> list[Item]:
    return [Item(f"{request}:{index}", b"", metadata) for index in range(count)]


def value(prompt: str) -> float:
    request, _, index = prompt.partition(":")
    return int(request) * 1000.0 + int(index)


class Scorer:
    """Answers by prompt; metadata 'breaks' fails the whole call, 'unencodable' cannot even be sent."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s, self.running, self.ready, self.sizes, self.prompts = delay_s, 0, 0, [], []

    def prepare(self, batch: Batch) -> Batch:
        """The request says whose it is, so that `send` can tell whether it was given others'."""
        return replace(batch, request=HttpRequest(repr(batch.prompts).encode()))

    async def send(self, batch: Batch, callers: Sequence[Caller]) -> CallOutcome:
        assert batch.request is None or batch.request.content == repr(batch.prompts).encode()
        self.ready += batch.request is not None
        if "unencodable" in batch.metadata:
            return CallOutcome(Status.REJECTED, error="cannot be encoded", attempts=0, divisible=True)
        self.running += 1
        assert self.running <= SLOTS
        self.sizes.append(len(batch.prompts))
        self.prompts += batch.prompts
        await asyncio.sleep(self.delay_s)
        self.running -= 1
        if "breaks" in batch.metadata:
            return CallOutcome(Status.HTTP_ERROR, error="HTTP 424", divisible=True)
        return CallOutcome(Status.OK, [value(prompt) for prompt in batch.prompts])

    def batcher(self, wait_s: float = 0.002) -> Batcher:
        return Batcher(self.send, self.prepare, asyncio.Semaphore(SLOTS), MAX_BATCH, wait_s)


def scores(outcomes: list[ItemOutcome]) -> list[float]:
    return [float(call.answers[index]) for call, index in outcomes if call.answers]  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Plan:
    """One request: when it comes, how many images, what becomes of it."""

    start_ms: int
    count: int
    fate: str


plans = st.builds(
    Plan,
    st.integers(0, 6),
    st.integers(1, 9),
    st.sampled_from(["plain", "plain", "plain", "breaks", "unencodable", "impatient", "cancelled"]),
)


@settings(max_examples=60)
@given(st.lists(plans, min_size=1, max_size=8))
def test_every_image_gets_its_own_answer_whatever_the_others_do(requests: list[Plan]) -> None:
    """Bug: scores go to another request's images, or one request's fault, patience or end costs another's."""

    async def run_one(batcher: Batcher, number: int, plan: Plan) -> None:
        await asyncio.sleep(plan.start_ms / 1000)
        impatient = plan.fate == "impatient"
        caller = Caller(Deadline.after(0.001) if impatient else Deadline(), str(number))
        call = asyncio.create_task(batcher.score(items(number, plan.count, plan.fate), caller))
        if plan.fate == "cancelled":
            await asyncio.sleep(0.002)
            call.cancel()
        if plan.fate in ("unencodable", "breaks"):
            status = Status.REJECTED if plan.fate == "unencodable" else Status.HTTP_ERROR
            assert {outcome.call.status for outcome in await call} == {status}
        elif plan.fate == "plain":
            assert scores(await call) == [number * 1000.0 + index for index in range(plan.count)]
        else:
            (done,) = await asyncio.gather(call, return_exceptions=True)
            for index, outcome in enumerate(done if isinstance(done, list) else []):
                assert outcome.call.status is Status.TIMEOUT or scores([outcome]) == [number * 1000.0 + index]

    async def scenario() -> None:
        scorer = Scorer(0.001)
        batcher = scorer.batcher()
        await asyncio.gather(*(run_one(batcher, number, plan) for number, plan in enumerate(requests)))
        assert all(size <= MAX_BATCH for size in scorer.sizes)
        while not batcher.idle:
            await asyncio.sleep(0.001)
        await batcher.aclose()

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_requests_share_a_call() -> None:
    """Bug: eight clients with one image each make eight calls of a scorer that takes eight at once."""

    async def scenario() -> list[int]:
        scorer = Scorer(0.01)
        batcher = scorer.batcher()
        await asyncio.gather(*(batcher.score(items(n, 1), Caller()) for n in range(8)))
        return scorer.sizes

    assert asyncio.run(scenario()) == [4, 4]


def test_what_has_to_wait_is_made_ready_meanwhile() -> None:
    """Bug: an endpoint that has answered waits for its next body; or one made ready goes with images since given up."""

    async def scenario() -> None:
        scorer = Scorer(delay_s=0.1)
        batcher = scorer.batcher()
        calls = [asyncio.create_task(batcher.score(items(number, MAX_BATCH), Caller())) for number in range(SLOTS)]
        while scorer.running < SLOTS:
            await asyncio.sleep(0)
        waiting = [asyncio.create_task(batcher.score(items(number, MAX_BATCH), Caller())) for number in (2, 3)]
        in_two_parts = [asyncio.create_task(batcher.score(items(number, 2), Caller())) for number in (4, 5)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        found = await asyncio.gather(*calls, *waiting[1:], *in_two_parts)
        assert [scores(outcomes)[0] for outcomes in found] == [0.0, 1000.0, 3000.0, 4000.0, 5000.0]
        assert (scorer.sizes, scorer.ready) == ([MAX_BATCH] * 4, 1)

    asyncio.run(scenario())


def test_an_image_that_cannot_be_sent_costs_the_others_nothing() -> None:
    """Bug: one image's odd metadata rejects the images of the same request that share its call, or is sent."""

    async def scenario() -> tuple[list[ItemOutcome], list[str]]:
        scorer = Scorer()
        mixed = [Item(f"1:{n}", b"", "unencodable" if n in (2, 5) else None) for n in range(8)]
        return await scorer.batcher().score(mixed, Caller()), scorer.prompts

    outcomes, prompts = asyncio.run(scenario())
    assert [call.status is Status.REJECTED for call, _ in outcomes] == [n in (2, 5) for n in range(8)]
    assert scores(outcomes) == [1000.0 + n for n in range(8) if n not in (2, 5)]
    assert sorted(prompts) == [f"1:{n}" for n in range(8) if n not in (2, 5)]


def test_nobody_waits_longer_than_the_window() -> None:
    """Bug: a lone image waits for company that never comes, or a full batch waits for the window."""

    async def scenario() -> tuple[float, float]:
        loop, scorer = asyncio.get_running_loop(), Scorer()
        started_s = loop.time()
        await scorer.batcher(wait_s=30.0).score(items(0, MAX_BATCH), Caller())
        full_s = loop.time() - started_s
        await scorer.batcher(wait_s=0.05).score(items(0, 1), Caller())
        return full_s, loop.time() - started_s - full_s

    full_s, lone_s = asyncio.run(asyncio.wait_for(scenario(), 20))
    assert full_s < 10
    assert 0.04 < lone_s < 10


def test_what_nobody_waits_for_any_more_is_not_sent() -> None:
    """Bug: images of requests that gave up are still paid for, ahead of those that wait."""

    async def scenario() -> list[str]:
        scorer = Scorer(0.1)
        batcher = scorer.batcher()
        busy = [asyncio.create_task(batcher.score(items(n, MAX_BATCH), Caller())) for n in range(SLOTS)]
        await asyncio.sleep(0.02)
        late = await batcher.score(items(7, 3), Caller(Deadline.after(0.01)))
        assert [outcome.call.status for outcome in late] == [Status.TIMEOUT] * 3
        await asyncio.gather(*busy)
        await batcher.score(items(8, 1), Caller())
        return scorer.prompts

    prompts = asyncio.run(asyncio.wait_for(scenario(), 20))
    assert [prompt for prompt in prompts if prompt.startswith("7:")] == []


def test_a_call_that_breaks_down_leaves_nobody_waiting() -> None:
    """Bug: an unforeseen error in the call, or the end of the service, hangs every request that shared it."""

    async def failing(batch: Batch, callers: Sequence[Caller]) -> CallOutcome:
        raise ZeroDivisionError

    async def scenario() -> None:
        batcher = Batcher(failing, lambda batch: batch, asyncio.Semaphore(1), 4, 0.001)
        for _ in range(3):  # the slot is free again each time
            with pytest.raises(ZeroDivisionError):
                await batcher.score(items(0, 2), Caller())
        stuck = Scorer(60).batcher()
        waiting = [asyncio.create_task(stuck.score(items(n, 4), Caller())) for n in range(4)]
        await asyncio.sleep(0.02)
        await stuck.aclose()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(error, ConnectionError) for error in ended)

    asyncio.run(asyncio.wait_for(scenario(), 20))
