"""The body of every refusal: an RFC 9457 problem document."""

from __future__ import annotations

from lasro.wire.codec import Message


class Problem(Message):
    """RFC 9457 problem details."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
