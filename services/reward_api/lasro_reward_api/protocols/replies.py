"""Reading numbers from replies, strictly: what is not a finite number is refused, never coerced."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from lasro.errors import WireError
from lasro.service.error_text import error_of_json
from lasro_reward_api.protocols.base import ItemResult, Rejected

LONGEST_QUOTE = 500
"""Letters of an endpoint's own words that are kept; what is shown is shorter yet."""


def json_value(content_type: str, body: bytes) -> Any:
    """The body as JSON; raises WireError for anything else, whatever the content type says."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        kind = content_type.partition(";")[0] or "no content type"
        raise WireError(f"reply: got {len(body)} bytes of {kind} that are not JSON") from error


def json_object(content_type: str, body: bytes) -> dict[str, Any]:
    """The body as a JSON object; raises WireError for anything else."""
    value = json_value(content_type, body)
    if not isinstance(value, dict):
        raise WireError(f"reply: got a JSON {type(value).__name__}, expected an object")
    return value


def keys_shown(reply: Mapping[Any, Any]) -> list[str]:
    """A few keys for a message; words of others are cut before they are repeated."""
    return sorted(str(key)[:40] for key in reply)[:5]


def refuse_error(reply: Mapping[str, Any], wanted: str) -> None:
    """Raise WireError where a reply of status 2xx reports an error in place of what is wanted, with its words."""
    if reply.get("error"):
        said = error_of_json(reply)[:LONGEST_QUOTE] or "see its log"
        raise WireError(f"reply: the server reports an error instead of {wanted}: {said}")


def number_list(reply: dict[str, Any], key: str, count: int) -> list[Any]:
    """The list under `key`, of exactly `count` entries of any kind."""
    values = reply.get(key)
    if not isinstance(values, list):
        said = error_of_json(reply)[:LONGEST_QUOTE]
        raise WireError(f"reply: no list {key!r}, got the keys {keys_shown(reply)}" + (f": {said}" if said else ""))
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


def score_or_reason(
    score: Any, reason: Any, index: int, read: Callable[[Any, str], float] = finite_number
) -> ItemResult:
    """One item of a reply that lists scores, each as `read` takes it, and, where there is none, why."""
    if reason is None:
        return read(score, f"scores[{index}]")
    if not isinstance(reason, str) or not reason:
        raise WireError(f"errors[{index}]: got {type(reason).__name__}, expected null or a reason")
    if score is not None:
        raise WireError(f"scores[{index}]: got a value beside an error, expected null")
    return Rejected(reason[:LONGEST_QUOTE])
