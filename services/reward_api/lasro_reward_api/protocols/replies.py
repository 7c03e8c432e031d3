"""Reading numbers from replies, strictly: what is not a finite number is refused, never coerced."""

from __future__ import annotations

import json
import math
from typing import Any

from lasro.errors import WireError


def json_object(content_type: str, body: bytes) -> dict[str, Any]:
    """The body as a JSON object; raises WireError for anything else, whatever the content type says."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        kind = content_type.partition(";")[0] or "no content type"
        raise WireError(f"reply: got {len(body)} bytes of {kind} that are not JSON") from error
    if not isinstance(value, dict):
        raise WireError(f"reply: got a JSON {type(value).__name__}, expected an object")
    return value


def number_list(reply: dict[str, Any], key: str, count: int) -> list[Any]:
    """The list under `key`, of exactly `count` entries of any kind."""
    values = reply.get(key)
    if not isinstance(values, list):
        raise WireError(f"reply: no list {key!r}, got the keys {sorted(map(str, reply))[:5]}")
    if len(values) != count:
        raise WireError(f"{key}: got {len(values)}, expected one per image ({count})")
    return values


def finite_number(value: object, where: str) -> float:
    """`value` where it is an int or float (a bool is neither) and finite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WireError(f"{where}: got {type(value).__name__}, expected a number")
    try:
        number = float(value)
    except OverflowError as error:
        raise WireError(f"{where}: got an integer too large for a float") from error
    if not math.isfinite(number):
        raise WireError(f"{where}: got {number}, expected a finite number")
    return number
