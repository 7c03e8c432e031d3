"""The shape that all protocols share.

`encode(batch, settings)` makes the request and raises WireError for a batch that the protocol cannot carry.
`decode(content_type, body, count, settings)` reads a reply of status 2xx into one result per image and raises WireError
for anything else. Both are pure; `endpoints.connections` sends and receives. `settings` are a reward's `mapping`, which
was checked when it was registered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class HttpRequest:
    """An HTTP POST to be made. `path` is appended to the registered URL."""

    content: bytes
    headers: dict[str, str] = field(default_factory=dict)
    path: str = ""


@dataclass(frozen=True)
class Batch:
    """Images for one call, encoded as PNG, JPEG or WebP; the three lists are equally long."""

    prompts: list[str]
    images: list[bytes]
    metadata: list[Any]
    request: HttpRequest | None = None
    """The encoded call, where it was encoded ahead of its turn."""


@dataclass(frozen=True)
class Rejected:
    """The scorer says itself that it could not score an item, and why."""

    reason: str


ItemResult = float | Rejected
Settings = Mapping[str, Any]


def _never(settings: Settings) -> bool:
    return False


def _as_they_are(settings: Settings, error: str) -> Settings | None:
    return None


@dataclass(frozen=True)
class ProtocolCodec:
    """One protocol. `check` raises ConfigError for `mapping` settings it does not know.

    `one_image` tells whether a call carries a single image under these settings, whatever the reward's `max_batch`.
    `adapted` returns settings that the server will take, where its refusal says what it does not take; else None.
    """

    check: Callable[[Settings], None]
    encode: Callable[[Batch, Settings], HttpRequest]
    decode: Callable[[str, bytes, int, Settings], list[ItemResult]]
    one_image: Callable[[Settings], bool] = _never
    adapted: Callable[[Settings, str], Settings | None] = _as_they_are
