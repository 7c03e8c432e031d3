"""How much this process takes on: requests in flight, and images waiting or being scored, in all and per reward.

A request beyond a limit is refused with Retry-After instead of waiting in memory. Groups are counted but never refused:
they wait in Redis, and this process claims no more than `groups_at_once` of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from lasro.errors import BusyError, QueueFullError


@dataclass(frozen=True)
class Limits:
    requests: int
    items: int
    reward_items: int


class Admission:
    """Counts images by reward name; calls `watch(name, count)` at every change."""

    def __init__(self, limits: Limits, watch: Callable[[str, int], None]) -> None:
        self._limits, self._watch = limits, watch
        self._requests = 0
        self._items: Counter[str] = Counter()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around the whole of a request once its body is there; raises BusyError."""
        if self._requests >= self._limits.requests:
            raise BusyError(f"{self._requests} requests are in flight; try again later or raise LASRO_MAX_REQUESTS")
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    @contextmanager
    def items(self, counts: Mapping[str, int], refuse: bool) -> Iterator[None]:
        """Around scoring `counts[name]` images per reward; with `refuse` raises QueueFullError or BusyError.

        A request that exceeds a limit by itself is let in when nothing else is in flight, since waiting would not help.
        """
        if refuse:
            self._check(counts)
        self._add(counts, 1)
        try:
            yield
        finally:
            self._add(counts, -1)

    def _check(self, counts: Mapping[str, int]) -> None:
        for name, count in counts.items():
            waiting = self._items[name]
            if count and waiting and waiting + count > self._limits.reward_items:
                raise QueueFullError(
                    f"reward {name}: {waiting} images are in flight, {count} more would exceed "
                    f"{self._limits.reward_items}; try again later or raise LASRO_MAX_REWARD_ITEMS"
                )
        waiting, count = self._items.total(), sum(counts.values())
        if count and waiting and waiting + count > self._limits.items:
            raise BusyError(
                f"{waiting} images are in flight, {count} more would exceed {self._limits.items}; "
                "try again later or raise LASRO_MAX_ITEMS"
            )

    def _add(self, counts: Mapping[str, int], sign: int) -> None:
        for name, count in counts.items():
            if count:
                self._items[name] += sign * count
                self._watch(name, self._items[name])
                if not self._items[name]:
                    del self._items[name]
