"""The body of every refusal: an RFC 9457 problem document."""

from __future__ import annotations

from pydantic import Field

from lasro.wire.codec import Message

BLANK_TYPE = "about:blank"
"""The type of a problem that says no more than its HTTP status."""


class Problem(Message):
    """RFC 9457 problem details. Programs go by `type`, people by the rest."""

    type: str = Field(
        default=BLANK_TYPE, json_schema_extra={"format": "uri-reference"}, description="which problem it is; stable"
    )
    title: str
    status: int
    detail: str
