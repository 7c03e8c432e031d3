"""Round trips to Redis that several callers share.

A question that finds a free round trip goes at once and waits for no other. While `max_concurrent` trips are in flight,
further questions gather for the next one, so no caller gets an answer that was read before it asked. A round trip costs
redis-py more time than the rest of a cached answer, and as much as the rest of adding a group.
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
    """Gathers the questions of several callers into calls of `make`.

    `make` takes a list of questions and answers them in order; an exception from it reaches every caller of that trip.
    The questions of one trip weigh at most `largest` together, except that one heavier question goes alone. At most
    `max_concurrent` trips are in flight.
    """

    def __init__(
        self,
        make: Callable[[list[K]], Awaitable[Sequence[V]]],
        weight: Callable[[K], int],
        largest: int,
        max_concurrent: int = 1,
    ) -> None:
        self._make, self._weight, self._largest, self._max_concurrent = make, weight, largest, max_concurrent
        self._waiters: deque[_Waiter[K, V]] = deque()
        self._in_flight: set[asyncio.Task[Sequence[V]]] = set()

    async def get(self, asked: K) -> V:
        """The answer to one question."""
        waiter: _Waiter[K, V] = _Waiter(asked, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        if len(self._in_flight) < self._max_concurrent:
            self._start()
        return await waiter.answer

    def _start(self) -> None:
        sharing = [self._waiters.popleft()]
        weight = self._weight(sharing[0].asked)
        while self._waiters and (weight := weight + self._weight(self._waiters[0].asked)) <= self._largest:
            sharing.append(self._waiters.popleft())
        trip = asyncio.create_task(self._made([waiter.asked for waiter in sharing]))
        self._in_flight.add(trip)
        trip.add_done_callback(partial(self._done, sharing))

    async def _made(self, asked: list[K]) -> Sequence[V]:
        return await self._make(asked)

    def _done(self, sharing: list[_Waiter[K, V]], trip: asyncio.Task[Sequence[V]]) -> None:
        self._in_flight.discard(trip)
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
