"""Ends long work when the user asks for it, at a point from which it can be resumed. Imports no torch."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from lasro.training.distributed import DistributedContext


class StopRequest:
    """Whether Ctrl-C or SIGTERM came; a second time, KeyboardInterrupt is raised at once. Context manager."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.signal = number

    @property
    def asked(self) -> bool:
        return self.signal is not None

    def agree(self, peers: DistributedContext) -> None:
        """Stop all processes after the same round where any of them got a signal."""
        signals = [signal for signal in peers.all_gather(lambda: self.signal, int | None) if signal is not None]
        self.signal = signals[0] if signals else None

    def raise_if_requested(self) -> None:
        """End as the signal would have: KeyboardInterrupt, or exit status 143 for SIGTERM; nothing when not asked."""
        if self.signal == signal.SIGTERM:
            sys.exit(128 + signal.SIGTERM)
        if self.asked:
            raise KeyboardInterrupt
