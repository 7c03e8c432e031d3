"""Bounds on the connections of one service process, and what its connections share."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

log = logging.getLogger("lasro")
WARNING_INTERVAL_S = 10.0


@dataclass(frozen=True)
class HttpLimits:
    """Bounds of one process."""

    connections: int
    descriptors: int
    """Highest file descriptor that a connection may have; those above are for Redis, rewards and files."""
    head_bytes: int
    head_timeout_s: float
    body_timeout_s: float


class Droppable(Protocol):
    """A connection."""

    def drop(self) -> None:
        """Close it while it waits for a request."""
        ...


@dataclass
class OpenConnections:
    """What the connections of one server share."""

    limits: HttpLimits
    waiting: dict[Droppable, None] = field(default_factory=dict)
    """Those without a request under way, the longest waiting first."""
    unsaid: Counter[str] = field(default_factory=Counter)
    """How often each thing happened since it was last logged."""
    said_s: dict[str, float] = field(default_factory=dict)

    def warn(self, what: str) -> None:
        """Log it, at most every WARNING_INTERVAL_S, with how often it happened since."""
        now_s = time.monotonic()
        self.unsaid[what] += 1
        if now_s - self.said_s.get(what, -WARNING_INTERVAL_S) >= WARNING_INTERVAL_S:
            log.warning("%s (%d times since this was last logged)", what, self.unsaid.pop(what))
            self.said_s[what] = now_s
