"""How both clients call a service again that is away or busy."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from lasro.errors import BusyError, LasroError, UnreachableError

T = TypeVar("T")
Kinds = tuple[type[LasroError], ...]
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
AWAY_OR_BUSY: Kinds = (UnreachableError, BusyError)
_jitter = random.Random()
"""Of its own, so that a retry draws nothing from a generator that the caller has seeded."""


def with_retry(call: Callable[[], T], deadline: float, retried: Kinds = AWAY_OR_BUSY, final: Kinds = ()) -> T:
    """The result of `call`, made again while it raises an error of `retried` that is none of `final`.

    Pauses double from FIRST_PAUSE_S to LONGEST_PAUSE_S. Each is shortened at random, to half at most, so that many
    clients do not return to a restarted service at the same moment. Raises the last error where the next pause would
    end after `deadline`, which is a time of `time.monotonic`. The call must be safe to repeat.
    """
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return call()
        except retried as error:
            wait_s = _jitter.uniform(pause_s / 2, pause_s)
            if isinstance(error, final) or time.monotonic() + wait_s >= deadline:
                raise
        time.sleep(wait_s)
        pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
