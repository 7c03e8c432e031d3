"""One call of a reward for the images of several requests: at most `max_batch`, gathered for at most `wait_s`.

Results go back by position. A request that gives up takes its images out of the queue; a call in flight goes on for the
others that share it. A call that failed for what it carried is made again for each request alone, so one request's odd
image or metadata costs nobody else. A call that the protocol could not even encode is halved until only the images are
left that it cannot carry. While all slots are taken, the next full batches are encoded ahead, so that an endpoint which
has answered does not wait for its next body.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from lasro.errors import UnreachableError
from lasro.wire import Status
from lasro_reward_api.deadline import Caller
from lasro_reward_api.protocols.base import Batch, ItemResult


class Item(NamedTuple):
    prompt: str
    image: bytes
    metadata: Any


@dataclass(frozen=True)
class CallOutcome:
    """How one call ended. `answers` is set exactly when `status` is ok, one per image."""

    status: Status
    answers: list[ItemResult] | None = None
    error: str | None = None
    attempts: int = 1
    latency_s: float = 0.0
    divisible: bool = False
    """Whether it failed in a way that may be the fault of one of its images."""


class ItemOutcome(NamedTuple):
    """The call that an image was in, and the image's position there."""

    call: CallOutcome
    position: int


Send = Callable[[Batch, Sequence[Caller]], Awaitable[CallOutcome]]
Prepare = Callable[[Batch], Batch]
"""Encodes a batch ahead of its turn; does not raise."""
MOST_READY = 8
"""Most batches of a queue encoded ahead: each holds its images a second time."""


@dataclass(eq=False)
class _Entry:
    item: Item
    caller: Caller
    queued_at_s: float
    ready: Batch | None = None
    """The batch that was encoded ahead for this image; the same object for every image in it."""
    outcome: asyncio.Future[ItemOutcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """The queue of one reward. `slots` bounds its calls in flight; with `shared`, other queues take turns at them."""

    def __init__(
        self,
        send: Send,
        prepare: Prepare,
        slots: asyncio.Semaphore,
        max_batch: int,
        wait_s: float,
        shared: bool = False,
    ) -> None:
        self._send, self._prepare, self._shared = send, prepare, shared
        self._slots, self._max_batch, self._wait_s = slots, max_batch, wait_s
        self._queue: deque[_Entry] = deque()
        self._is_full = asyncio.Event()
        self._gathering: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()

    @property
    def idle(self) -> bool:
        return not self._queue and not self._calls

    async def score(self, items: Sequence[Item], caller: Caller) -> list[ItemOutcome]:
        """The outcome of each item, in order; a timeout for each that is not back by the caller's deadline."""
        now_s = asyncio.get_running_loop().time()
        entries = [_Entry(item, caller, now_s) for item in items]
        self._make_ready(entries)
        self._queue.extend(entries)
        if len(self._queue) >= self._max_batch:
            self._is_full.set()
        if self._gathering is None or self._gathering.done():
            self._gathering = asyncio.create_task(self._gather())
        left_s = caller.deadline.left_s()
        try:
            await asyncio.wait([entry.outcome for entry in entries], timeout=None if math.isinf(left_s) else left_s)
        finally:
            for entry in entries:
                if not entry.outcome.cancel() and not entry.outcome.cancelled():
                    entry.outcome.exception()  # retrieved, so that asyncio does not report it as never seen
            self._queue = deque(entry for entry in self._queue if not entry.outcome.done())
        late = CallOutcome(Status.TIMEOUT, error="no reply before the deadline of the request", attempts=0)
        return [ItemOutcome(late, 0) if entry.outcome.cancelled() else entry.outcome.result() for entry in entries]

    async def aclose(self) -> None:
        """Cancel the calls in flight; what is queued raises UnreachableError."""
        tasks = [task for task in (self._gathering, *self._calls) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        _settle(list(self._queue), UnreachableError("the service is shutting down; try again"))

    async def _gather(self) -> None:
        while self._queue:
            await self._until_full()
            # More may arrive while all slots are taken: what goes is decided once one is free.
            await self._slots.acquire()
            entries = self._popped()
            if not entries:
                self._slots.release()
                continue
            call = asyncio.create_task(self._run_slot(entries))
            self._calls.add(call)
            call.add_done_callback(partial(self._called, entries))

    async def _until_full(self) -> None:
        left_s = self._queue[0].queued_at_s + self._wait_s - asyncio.get_running_loop().time()
        if len(self._queue) < self._max_batch and left_s > 0:
            self._is_full.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._is_full.wait()

    def _make_ready(self, entries: list[_Entry]) -> None:
        """Encode ahead the full batches among `entries`, where they have to wait and their turn is near."""
        ahead, rest = divmod(len(self._queue), self._max_batch)
        if rest or not self._slots.locked():
            return
        for start in range(0, len(entries) - self._max_batch + 1, self._max_batch)[: max(0, MOST_READY - ahead)]:
            share = entries[start : start + self._max_batch]
            batch = self._prepare(_batch(share))
            for entry in share:
                entry.ready = batch

    def _called(self, entries: list[_Entry], call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        self._slots.release()
        error = None if call.cancelled() else call.exception()
        _settle(entries, error or UnreachableError("the call was given up; try again"))

    def _popped(self) -> list[_Entry]:
        return [self._queue.popleft() for _ in range(min(self._max_batch, len(self._queue)))]

    async def _run_slot(self, entries: list[_Entry]) -> None:
        """Make calls one after the other in one slot, as long as full batches wait.

        So the next call goes out before anything else runs. `entries` is always the list of the call in flight.
        """
        while True:
            await self._call(entries)
            if self._shared or len(self._queue) < self._max_batch:
                return
            entries[:] = self._popped()

    async def _call(self, entries: list[_Entry]) -> None:
        callers = list(dict.fromkeys(entry.caller for entry in entries))
        outcome = await self._send(_batch(entries), callers)
        if outcome.divisible and len(callers) > 1:
            shares = [[entry for entry in entries if entry.caller is caller] for caller in callers]
        elif outcome.status is Status.REJECTED and len(entries) > 1:
            # Nothing was sent: halving finds the image that the protocol cannot carry without one call too many.
            shares = [entries[: len(entries) // 2], entries[len(entries) // 2 :]]
        else:
            shares = []
            for index, entry in enumerate(entries):
                if not entry.outcome.done():
                    entry.outcome.set_result(ItemOutcome(outcome, index))
        for share in shares:
            if not all(entry.outcome.done() for entry in share):
                await self._call(share)


def _batch(entries: list[_Entry]) -> Batch:
    """The batch of these images: the one encoded ahead where it holds exactly these, else a new one."""
    ready = entries[0].ready
    if ready is not None and len(ready.images) == len(entries) and all(entry.ready is ready for entry in entries):
        return ready
    return Batch(
        [entry.item.prompt for entry in entries],
        [entry.item.image for entry in entries],
        [entry.item.metadata for entry in entries],
    )


def _settle(entries: list[_Entry], error: BaseException) -> None:
    """Raise `error` in every caller that still waits for one of these entries."""
    for entry in entries:
        if not entry.outcome.done():
            entry.outcome.set_exception(error)
