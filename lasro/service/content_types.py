"""The content type of a request body, which has to be given and to be one that the route takes.

A page in a browser can send forms and plain text to any address without asking; JSON it cannot.
"""

from __future__ import annotations

from typing import NamedTuple

from fastapi import Request

from lasro import wire
from lasro.errors import ContentTypeError

JSON_TYPE = "application/json"
MESSAGE_TYPES = (JSON_TYPE, wire.MSGPACK_TYPE)


class Body(NamedTuple):
    """A request body and its content type, in lower case and without parameters."""

    content_type: str
    content: bytes


def check_content_type(request: Request, accepted: tuple[str, ...] = MESSAGE_TYPES) -> str:
    """The type of the request's body; raises ContentTypeError for another than these, none, or a compressed body."""
    coding = request.headers.get("content-encoding", "identity")
    if coding.strip().lower() != "identity":
        raise ContentTypeError(f"Content-Encoding: got {coding[:60]!r}, expected none; send the body uncompressed")
    header = request.headers.get("content-type", "")
    if header in accepted:
        return header
    given = header.partition(";")[0].strip().lower()
    if given not in accepted:
        got = repr(given[:60]) if given else "none"
        curl = f"; with curl: -H 'Content-Type: {JSON_TYPE}'" if JSON_TYPE in accepted else ""
        raise ContentTypeError(f"Content-Type: got {got}, expected {' or '.join(accepted)}{curl}")
    return given


async def read_body(request: Request, accepted: tuple[str, ...] = MESSAGE_TYPES) -> Body:
    """The whole body, once it is known to be of an accepted type; raises ContentTypeError.

    Read before a request takes one of few places: a body may take as long as its sender likes.
    """
    return Body(check_content_type(request, accepted), await request.body())
