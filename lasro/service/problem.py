"""Refusals as RFC 9457 problem documents."""

from __future__ import annotations

from fastapi import Response

from lasro import wire

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
"""Sent to callers that are refused because the service is busy."""


def problem_response(status: int, title: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    body = wire.Problem(title=title, status=status, detail=detail)
    return Response(body.model_dump_json(), status, headers, media_type=PROBLEM_TYPE)
