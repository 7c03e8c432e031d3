"""Round trips that several callers share: everybody gets what is theirs, and nothing from before they asked."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasro.errors import StorageError, UnreachableError
from lasro.redis_store.pipelined_batcher import PipelinedBatcher

LARGEST = 100


class Store:
    """Answers a question with itself and the number of the read that it comes from."""

    def __init__(self, max_concurrent: int = 1) -> None:
        self.reads: list[list[int]] = []
        self.failing = False
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.shared: PipelinedBatcher[int, tuple[int, int]] = PipelinedBatcher(
            self.read, lambda asked: asked, LARGEST, max_concurrent
        )

    async def read(self, asked: list[int]) -> list[tuple[int, int]]:
        self.reads.append(asked)
        number = len(self.reads)
        await self.go_on.wait()
        if self.failing:
            raise StorageError("down")
        return [(one, number) for one in asked]


@given(st.lists(st.tuples(st.integers(0, 2 * LARGEST), st.integers(0, 3)), max_size=20))
def test_everybody_gets_their_own_answer(callers: list[tuple[int, int]]) -> None:
    """Bug: answers are handed out in another order, and an image gets the score of another."""

    async def scenario() -> None:
        store = Store()

        async def ask(asked: int, later: int) -> None:
            for _ in range(later):
                await asyncio.sleep(0)
            assert (await store.shared.get(asked))[0] == asked

        await asyncio.gather(*(ask(asked, later) for asked, later in callers))
        assert all(sum(read) <= LARGEST or len(read) == 1 for read in store.reads), "a read has a largest size"

    asyncio.run(scenario())


def test_what_comes_during_a_read_shares_the_next_one() -> None:
    """Bug: each caller costs a round trip, or is given what was read before they asked."""

    async def scenario() -> None:
        store = Store()
        store.go_on.clear()
        first = asyncio.create_task(store.shared.get(1))
        while not store.reads:
            await asyncio.sleep(0)
        others = [asyncio.create_task(store.shared.get(asked)) for asked in (1, 2, 3)]
        await asyncio.sleep(0)
        store.go_on.set()
        assert await first == (1, 1)
        assert [await other for other in others] == [(1, 2), (2, 2), (3, 2)]

    asyncio.run(scenario())


def test_no_more_trips_than_allowed_are_made_side_by_side() -> None:
    """Bug: the second of two trips waits for the first, or all callers go alone at once."""

    async def scenario() -> None:
        store = Store(max_concurrent=2)
        store.go_on.clear()
        callers = [asyncio.create_task(store.shared.get(asked)) for asked in (1, 2, 3, 4)]
        await asyncio.sleep(0.01)
        assert store.reads == [[1], [2]]
        store.go_on.set()
        assert [await caller for caller in callers] == [(1, 1), (2, 2), (3, 3), (4, 3)]

    asyncio.run(scenario())


def test_a_read_that_fails_fails_those_who_share_it() -> None:
    """Bug: an error leaves somebody waiting for ever, or fails whoever asks next too."""

    async def scenario() -> None:
        store = Store()
        store.failing = True
        results = await asyncio.gather(*(store.shared.get(asked) for asked in (1, 2)), return_exceptions=True)
        assert [type(result) for result in results] == [StorageError, StorageError]
        store.failing = False
        assert await store.shared.get(3) == (3, len(store.reads))

    asyncio.run(scenario())


def test_who_gives_up_takes_nobody_along() -> None:
    """Bug: one client that hangs up cancels the look-up of all others."""

    async def scenario() -> None:
        store = Store()
        store.go_on.clear()
        leaving, staying = (asyncio.create_task(store.shared.get(asked)) for asked in (1, 2))
        await asyncio.sleep(0.01)
        leaving.cancel()
        await asyncio.sleep(0)
        store.go_on.set()
        assert (await staying)[0] == 2
        with pytest.raises(asyncio.CancelledError):
            await leaving

    asyncio.run(scenario())


def test_a_read_that_is_given_up_is_an_error() -> None:
    """Bug: at shutdown the callers of a cancelled read wait for ever."""

    async def scenario() -> None:
        async def read(asked: list[int]) -> list[int]:
            raise asyncio.CancelledError

        with pytest.raises(UnreachableError, match="shutting down"):
            await PipelinedBatcher(read, lambda asked: 1, LARGEST).get(1)

    asyncio.run(scenario())
