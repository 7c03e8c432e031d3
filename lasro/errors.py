"""Every exception that LaSRO raises on purpose, drawn once.

    LasroError                    anything below; `http_status`, `title` and `slug` say how a service reports it
    ├── ConfigError               a setting is unknown, missing or out of range
    ├── ModelError                a model folder or hub id that cannot be used
    ├── PromptTooLongError        a prompt over the tokenizer's limit
    ├── WireError                 a request or reply body that does not have the agreed form
    │   └── ContentTypeError      a request body of another content type than the route takes
    ├── NonFiniteError            NaN or infinity where a finite number is needed
    ├── NotFoundError             an unknown run, reward, group or version
    ├── ConflictError             a name in use, or a run folder made with another configuration
    ├── AuthError                 a missing or wrong API key
    ├── RewardError               a reward could not be computed; never turned into a number
    │   ├── BudgetError           the run's `max_reward_calls` is spent
    │   └── BlockedError          a URL or address that a reward may not live at
    ├── BusyError                 a process has as much as it takes on; try again later
    │   └── QueueFullError        one reward's queue is full; try again later
    ├── StorageError              a disk or Redis that does not take writes
    ├── DeviceMemoryError         a GPU or machine that is too small for what is done at once
    ├── UnreachableError          a service or Redis that does not answer at all
    │   ├── TimeoutExceededError  one that did not answer in time
    │   └── LockedOutError        a Redis that refuses the name or password
    └── ServiceError              a LaSRO service answered with problem+json

Messages name what was got, what was expected and what to do next, on one line.
Foreign exceptions are mapped to these at the boundary where they arise, with the cause chained.
"""

from __future__ import annotations

from typing import ClassVar

PROBLEM_TYPE_PREFIX = "urn:lasro:problem:"
LONGEST_MESSAGE = 1000


def _bounded(text: str) -> str:
    """Cut in the middle, where a foreign error's text stands: what was got comes first, and what to do last."""
    if len(text) <= LONGEST_MESSAGE:
        return text
    return f"{text[: LONGEST_MESSAGE * 2 // 3]} ... {text[-LONGEST_MESSAGE // 4 :]}"


class LasroError(Exception):
    """Base class. A service answers with `http_status`, `title` and `problem_type` as a problem document (RFC 9457).

    `slug` names the class in that type and never changes; `title` is for people. The message is one line of bounded
    length, whatever a foreign error put into it.
    """

    http_status: ClassVar[int] = 500
    title: ClassVar[str] = "internal error"
    slug: ClassVar[str] = "internal-error"

    def __init__(self, message: str = "") -> None:
        super().__init__(_bounded(" ".join(message.splitlines())))

    @classmethod
    def problem_type(cls) -> str:
        """The URI by which a client finds the class again."""
        return PROBLEM_TYPE_PREFIX + cls.slug


class ConfigError(LasroError, ValueError):
    http_status = 422
    title = "bad configuration"
    slug = "bad-configuration"


class ModelError(LasroError, ValueError):
    http_status = 422
    title = "unusable model"
    slug = "unusable-model"


class PromptTooLongError(LasroError, ValueError):
    http_status = 422
    title = "prompt too long"
    slug = "prompt-too-long"


class WireError(LasroError, ValueError):
    http_status = 422
    title = "malformed message"
    slug = "malformed-message"


class ContentTypeError(WireError):
    http_status = 415
    title = "unsupported content type"
    slug = "unsupported-content-type"


class NonFiniteError(LasroError, ValueError):
    http_status = 422
    title = "not finite"
    slug = "not-finite"


class NotFoundError(LasroError, LookupError):
    http_status = 404
    title = "not found"
    slug = "not-found"


class ConflictError(LasroError):
    http_status = 409
    title = "conflict"
    slug = "conflict"


class AuthError(LasroError):
    http_status = 401
    title = "not authorised"
    slug = "not-authorised"


class RewardError(LasroError):
    http_status = 424
    title = "reward failed"
    slug = "reward-failed"


class BudgetError(RewardError):
    http_status = 429
    title = "reward budget spent"
    slug = "budget-spent"


class BlockedError(RewardError):
    http_status = 422
    title = "blocked"
    slug = "blocked"


class BusyError(LasroError):
    http_status = 503
    title = "busy"
    slug = "busy"


class QueueFullError(BusyError):
    http_status = 429
    title = "queue full"
    slug = "queue-full"


class StorageError(LasroError, OSError):
    http_status = 507
    title = "storage failed"
    slug = "storage-failed"


class DeviceMemoryError(LasroError, MemoryError):
    http_status = 507
    title = "out of memory"
    slug = "out-of-gpu-memory"


class UnreachableError(LasroError, ConnectionError):
    http_status = 502
    title = "unreachable"
    slug = "unreachable"


class TimeoutExceededError(UnreachableError, TimeoutError):
    http_status = 504
    title = "timed out"
    slug = "timed-out"


class LockedOutError(UnreachableError):
    title = "locked out"
    slug = "locked-out"


class ServiceError(LasroError):
    """A LaSRO service refused or failed a request; `status` is its HTTP status, `detail` its reason."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(f"{detail} (HTTP {status}, {title})")
        self.status = status
        self.problem_title = title
        self.detail = detail
