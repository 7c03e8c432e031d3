"""Every exception that LaSRO raises on purpose, drawn once.

    LasroError                    anything below; `http_status` and `title` say how a service reports it
    ├── ConfigError               a setting is unknown, missing or out of range
    ├── ModelError                a model folder or hub id that cannot be used
    ├── PromptTooLongError        a prompt over the tokenizer's limit
    ├── WireError                 a request or reply body that does not have the agreed form
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
    ├── DeviceMemoryError         a GPU that is too small for what is done on it at once
    ├── UnreachableError          a service or Redis that does not answer at all
    │   ├── TimeoutExceededError  one that did not answer in time
    │   └── LockedOutError        a Redis that refuses the name or password
    └── ServiceError              a LaSRO service answered with problem+json

Messages name what was got, what was expected and what to do next, on one line.
Foreign exceptions are mapped to these at the boundary where they arise, with the cause chained.
"""

from __future__ import annotations

from typing import ClassVar


class LasroError(Exception):
    """Base class. `http_status` and `title` are what problem+json carries."""

    http_status: ClassVar[int] = 500
    title: ClassVar[str] = "internal error"


class ConfigError(LasroError, ValueError):
    http_status = 422
    title = "bad configuration"


class ModelError(LasroError, ValueError):
    http_status = 422
    title = "unusable model"


class PromptTooLongError(LasroError, ValueError):
    http_status = 422
    title = "prompt too long"


class WireError(LasroError, ValueError):
    http_status = 422
    title = "malformed message"


class NonFiniteError(LasroError, ValueError):
    http_status = 422
    title = "not finite"


class NotFoundError(LasroError, LookupError):
    http_status = 404
    title = "not found"


class ConflictError(LasroError):
    http_status = 409
    title = "conflict"


class AuthError(LasroError):
    http_status = 401
    title = "not authorised"


class RewardError(LasroError):
    http_status = 424
    title = "reward failed"


class BudgetError(RewardError):
    http_status = 429
    title = "reward budget spent"


class BlockedError(RewardError):
    http_status = 422
    title = "blocked"


class BusyError(LasroError):
    http_status = 503
    title = "busy"


class QueueFullError(BusyError):
    http_status = 429
    title = "queue full"


class StorageError(LasroError, OSError):
    http_status = 507
    title = "storage failed"


class DeviceMemoryError(LasroError, MemoryError):
    http_status = 507
    title = "out of GPU memory"


class UnreachableError(LasroError, ConnectionError):
    http_status = 502
    title = "unreachable"


class TimeoutExceededError(UnreachableError, TimeoutError):
    http_status = 504
    title = "timed out"


class LockedOutError(UnreachableError):
    title = "locked out"


class ServiceError(LasroError):
    """A LaSRO service refused or failed a request; `status` is its HTTP status, `detail` its reason."""

    def __init__(self, status: int, title: str, detail: str) -> None:
        super().__init__(f"{detail} (HTTP {status}, {title})")
        self.status = status
        self.problem_title = title
        self.detail = detail
