"""Which failed calls are made again, and after how long. Pure functions, but for the jitter."""

from __future__ import annotations

import email.utils
import random
import re
from datetime import UTC, datetime

BACKOFF_S = 0.2
LONGEST_BACKOFF_S = 10.0
LONGEST_RETRY_AFTER_S = 60.0
"""An endpoint that asks for more is not called again for these images."""

SECONDS = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")


def is_retried(status: int) -> bool:
    """Whether an HTTP status may pass by itself: 408, 409 (cog: busy with another image), 425, 429 and 5xx."""
    return status in (408, 409, 425, 429) or status // 100 == 5


def retry_after_s(value: str, now: datetime | None = None) -> float | None:
    """Seconds of a Retry-After header in either of its forms (RFC 9110, 10.2.3); None where it has neither.

    Seconds may have a fraction, which the RFC does not know and many servers send.
    """
    text = value.strip()
    if SECONDS.fullmatch(text):
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
        return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def pause_s(attempt: int, asked_s: float | None, left_s: float) -> float | None:
    """The wait after failed attempt number `attempt`: what the endpoint asked for, else full jitter.

    None where it would be too long, or would leave nothing of the `left_s` that the caller has.
    """
    if asked_s is None:
        wait_s = random.uniform(0, min(LONGEST_BACKOFF_S, BACKOFF_S * 2**attempt))
    elif asked_s > LONGEST_RETRY_AFTER_S:
        return None
    else:
        wait_s = asked_s
    return wait_s if wait_s < left_s else None
