"""What a registered reward may bring, within bounds: every process that scores keeps it and reads it often."""

from __future__ import annotations

from typing import Annotated, Any

import pydantic_core
from pydantic import AfterValidator, Field, WithJsonSchema

from lasro.wire.codec import Finite

MAX_HEADERS = 64
MAX_HEADERS_BYTES = 16 << 10
MAX_MAPPING_BYTES = 64 << 10
MAX_MAPPING_DEPTH = 40


def _bounded_headers(headers: dict[str, str]) -> dict[str, str]:
    if len(headers) > MAX_HEADERS:
        raise ValueError(f"got {len(headers)} headers, expected at most {MAX_HEADERS}")
    names = [name.lower() for name in headers]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"got {repeated[:60]!r} in two spellings, expected each header once")
    size = sum(len(name.encode()) + len(value.encode()) for name, value in headers.items())
    if size > MAX_HEADERS_BYTES:
        raise ValueError(f"got {size} bytes of names and values, expected at most {MAX_HEADERS_BYTES}")
    return headers


def _bounded_mapping(mapping: dict[str, Any]) -> dict[str, Any]:
    if _is_deeper(mapping, MAX_MAPPING_DEPTH):  # first: what is too deep cannot be written as JSON
        raise ValueError(f"got more than {MAX_MAPPING_DEPTH} levels, expected fewer")
    size = len(pydantic_core.to_json(mapping))
    if size > MAX_MAPPING_BYTES:
        raise ValueError(f"got {size} bytes as JSON, expected at most {MAX_MAPPING_BYTES}")
    return mapping


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects lie within one another deeper than so many levels."""
    if not isinstance(value, dict | list):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(part, levels - 1) for part in parts)


Headers = Annotated[
    dict[str, str], AfterValidator(_bounded_headers), Field(json_schema_extra={"maxProperties": MAX_HEADERS})
]
"""At most 64, of 16 KiB in all."""
Mapping = Annotated[dict[str, Any], AfterValidator(_bounded_mapping)]
"""At most 64 KiB as JSON, and 40 levels."""
Range = Annotated[
    tuple[Finite, Finite],
    Field(strict=False),  # JSON has lists only
    WithJsonSchema({"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}),
]
"""Lowest and highest score. Its schema is one that generators of clients know: few know `prefixItems`."""
