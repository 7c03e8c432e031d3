"""The time by which a caller wants its answer, passed along with its work."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Deadline:
    """`at_s` is on time.monotonic's clock; infinite where nobody waits."""

    at_s: float = math.inf

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    def left_s(self) -> float:
        """At least 0, infinite where there is no deadline."""
        return max(0.0, self.at_s - time.monotonic())


NEVER = Deadline()


def latest(deadlines: Iterable[Deadline]) -> Deadline:
    """The last deadline of several callers: their shared call is worth making as long as one of them waits."""
    return Deadline(max(deadline.at_s for deadline in deadlines))


@dataclass(frozen=True, eq=False)
class Caller:
    """For whom images are scored: one request, or one group."""

    deadline: Deadline = NEVER
    request_id: str = ""
