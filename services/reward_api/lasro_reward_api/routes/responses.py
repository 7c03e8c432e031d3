"""How the routes declare their answers in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from lasro import wire

REDIS_PROBLEMS = (502, 503, 504, 507)
"""Statuses of any route that needs Redis: unreachable, busy, timed out, takes no writes."""


def answer(status: int, model: type[wire.Message], description: str) -> dict[int | str, dict[str, Any]]:
    """`responses` for a route: its success, in JSON or msgpack."""
    return {status: {"model": model, "description": description, "content": {wire.MSGPACK_TYPE: {}}}}
