"""Reads of several callers in one round trip.

What is asked for while a read is under way goes into the next one: nobody is given what was read before they asked,
and nobody waits for company. A round trip costs redis-py more than all else that answering from the cache takes.
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
LARGEST = 4096
"""Weight of one read, unless a single caller asks for more."""


class _Asker(NamedTuple, Generic[K, V]):
    asked: K
    answer: asyncio.Future[V]


class SharedReads(Generic[K, V]):
    """`read` answers each of some questions, in order; what it raises, everybody who shared the read gets."""

    def __init__(self, read: Callable[[list[K]], Awaitable[Sequence[V]]], weight: Callable[[K], int]) -> None:
        self._read, self._weight = read, weight
        self._askers: deque[_Asker[K, V]] = deque()
        self._reading: asyncio.Task[Sequence[V]] | None = None

    async def get(self, asked: K) -> V:
        """The answer to one question."""
        asker: _Asker[K, V] = _Asker(asked, asyncio.get_running_loop().create_future())
        self._askers.append(asker)
        if self._reading is None:
            self._start()
        return await asker.answer

    def _start(self) -> None:
        sharing = [self._askers.popleft()]
        weight = self._weight(sharing[0].asked)
        while self._askers and (weight := weight + self._weight(self._askers[0].asked)) <= LARGEST:
            sharing.append(self._askers.popleft())
        self._reading = asyncio.create_task(self._read_all([asker.asked for asker in sharing]))
        self._reading.add_done_callback(partial(self._done, sharing))

    async def _read_all(self, asked: list[K]) -> Sequence[V]:
        return await self._read(asked)

    def _done(self, sharing: list[_Asker[K, V]], reading: asyncio.Task[Sequence[V]]) -> None:
        self._reading = None
        if self._askers:
            self._start()
        given_up = UnreachableError("the service is shutting down; try again")
        failure = given_up if reading.cancelled() else reading.exception()
        for place, (_, answer) in enumerate(sharing):
            if answer.done():
                continue
            if failure is not None:
                answer.set_exception(failure)
            else:
                answer.set_result(reading.result()[place])
