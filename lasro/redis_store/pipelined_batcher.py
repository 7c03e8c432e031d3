"""Round trips to Redis that several callers share.

What is asked while as many trips are under way as may be goes into the next one: nobody is given what was read before
they asked, and nobody waits for company. A round trip costs redis-py more than all else that answering from the cache
takes, and as much as all else that adding a group takes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from lasro.errors import UnreachableError

K = TypeVar("K")
V = TypeVar("V")


class _Waiter(NamedTuple, Generic[K, V]):
    asked: K
    answer: asyncio.Future[V]


class PipelinedBatcher(Generic[K, V]):
    """`make` answers each of some questions, in order; what it raises, everybody who shared the trip gets.

    A trip carries questions of a `weight` of up to `largest` together, unless a single one is heavier;
    `max_concurrent` trips are made side by side.
    """

    def __init__(
        self,
        make: Callable[[list[K]], Awaitable[Sequence[V]]],
        weight: Callable[[K], int],
        largest: int,
        max_concurrent: int = 1,
    ) -> None:
        self._make, self._weight, self._largest, self._at_once = make, weight, largest, max_concurrent
        self._waiters: deque[_Waiter[K, V]] = deque()
        self._under_way: set[asyncio.Task[Sequence[V]]] = set()

    async def get(self, asked: K) -> V:
        """The answer to one question."""
        waiter: _Waiter[K, V] = _Waiter(asked, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        if len(self._under_way) < self._at_once:
            self._start()
        return await waiter.answer

    def _start(self) -> None:
        sharing = [self._waiters.popleft()]
        weight = self._weight(sharing[0].asked)
        while self._waiters and (weight := weight + self._weight(self._waiters[0].asked)) <= self._largest:
            sharing.append(self._waiters.popleft())
        trip = asyncio.create_task(self._made([waiter.asked for waiter in sharing]))
        self._under_way.add(trip)
        trip.add_done_callback(partial(self._done, sharing))

    async def _made(self, asked: list[K]) -> Sequence[V]:
        return await self._make(asked)

    def _done(self, sharing: list[_Waiter[K, V]], trip: asyncio.Task[Sequence[V]]) -> None:
        self._under_way.discard(trip)
        if self._waiters:
            self._start()
        given_up = UnreachableError("the service is shutting down; try again")
        failure = given_up if trip.cancelled() else trip.exception()
        for place, (_, answer) in enumerate(sharing):
            if answer.done():
                continue
            if failure is not None:
                answer.set_exception(failure)
            else:
                answer.set_result(trip.result()[place])
