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


class _Asker(NamedTuple, Generic[K, V]):
    asked: K
    answer: asyncio.Future[V]


class SharedTrips(Generic[K, V]):
    """`make` answers each of some questions, in order; what it raises, everybody who shared the trip gets.

    A trip carries questions of a `weight` of up to `largest` together, unless a single one is heavier; `at_once` trips
    are made side by side.
    """

    def __init__(
        self,
        make: Callable[[list[K]], Awaitable[Sequence[V]]],
        weight: Callable[[K], int],
        largest: int,
        at_once: int = 1,
    ) -> None:
        self._make, self._weight, self._largest, self._at_once = make, weight, largest, at_once
        self._askers: deque[_Asker[K, V]] = deque()
        self._under_way: set[asyncio.Task[Sequence[V]]] = set()

    async def get(self, asked: K) -> V:
        """The answer to one question."""
        asker: _Asker[K, V] = _Asker(asked, asyncio.get_running_loop().create_future())
        self._askers.append(asker)
        if len(self._under_way) < self._at_once:
            self._start()
        return await asker.answer

    def _start(self) -> None:
        sharing = [self._askers.popleft()]
        weight = self._weight(sharing[0].asked)
        while self._askers and (weight := weight + self._weight(self._askers[0].asked)) <= self._largest:
            sharing.append(self._askers.popleft())
        trip = asyncio.create_task(self._made([asker.asked for asker in sharing]))
        self._under_way.add(trip)
        trip.add_done_callback(partial(self._done, sharing))

    async def _made(self, asked: list[K]) -> Sequence[V]:
        return await self._make(asked)

    def _done(self, sharing: list[_Asker[K, V]], trip: asyncio.Task[Sequence[V]]) -> None:
        self._under_way.discard(trip)
        if self._askers:
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
