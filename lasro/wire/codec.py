"""How a message is written and read: its base class, its field types, JSON and msgpack.

Both formats share one schema: bytes fields are base64 in JSON and raw in msgpack.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgpack
import pybase64
import pydantic_core
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from lasro.errors import WireError
from lasro.validation import explain

SCHEMA_VERSION = 1
MSGPACK_TYPE = "application/msgpack"
SAFETENSORS_TYPE = "application/vnd.safetensors"
TIMEOUT_HEADER = "X-Request-Timeout-S"
"""Seconds that the sender still waits; what has not begun by then is not scored."""
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _bytes_from_base64(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return pybase64.b64decode(value, validate=True)
    except ValueError as error:
        raise ValueError("expected base64 text") from error


def _base64_in_json(value: bytes) -> str:
    return pybase64.b64encode_as_string(value)


Blob = Annotated[
    bytes,
    BeforeValidator(_bytes_from_base64),
    PlainSerializer(_base64_in_json, return_type=str, when_used="json"),
    Field(json_schema_extra={"format": "byte"}),
]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Message(BaseModel):
    """Base of all messages: immutable, unknown fields refused, and nothing made of another type: no number of text, no
    boolean of a number. Fields that JSON and msgpack have no type for, such as enums, say `strict=False`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, ser_json_inf_nan="strings")


M = TypeVar("M", bound=Message)
Fields = dict[str, Any]
"""The fields of a message that this process has just made, and so knows to be right: to check them, and to take the
message apart again, would take a tenth of the time of a cached answer."""


def to_msgpack(message: Message | Fields) -> bytes:
    """Raises WireError where the message holds what msgpack cannot carry, such as an integer over 64 bits."""
    try:
        fields = message.model_dump(mode="python") if isinstance(message, Message) else message
        packed = msgpack.packb(fields, use_bin_type=True)
    except (OverflowError, ValueError, TypeError) as error:
        raise WireError(f"{type(message).__name__}: cannot be encoded as msgpack ({error})") from error
    assert packed is not None
    return packed


def to_json(message: Message | Fields) -> str | bytes:
    """As one JSON object."""
    return message.model_dump_json() if isinstance(message, Message) else pydantic_core.to_json(message)


def from_msgpack(kind: type[M], body: bytes) -> M:
    """Decode and check a msgpack body; raises WireError."""
    try:
        return kind.model_validate(msgpack.unpackb(body, raw=False, strict_map_key=True))
    except ValidationError as error:
        raise WireError(explain(error)) from error
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise WireError(f"body: got {len(body)} bytes that are not one msgpack map ({error})") from error


def from_json(kind: type[M], body: bytes | str) -> M:
    """Decode and check a JSON body; raises WireError."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise WireError(explain(error)) from error
