"""Refusals as RFC 9457 problem documents."""

from __future__ import annotations

from typing import NamedTuple

from fastapi import Response
from starlette.types import Receive, Scope, Send

from lasro import wire
from lasro.errors import PROBLEM_TYPE_PREFIX, BusyError, LasroError

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_S = 1
"""Sent to callers that are refused because the service is busy."""


class HttpProblem(NamedTuple):
    """A problem of the HTTP exchange itself, which no LasroError stands for."""

    http_status: int
    title: str
    slug: str | None
    """None where the status says all there is to say."""

    def problem_type(self) -> str:
        return wire.BLANK_TYPE if self.slug is None else PROBLEM_TYPE_PREFIX + self.slug


INCOMPLETE_REQUEST = HttpProblem(400, "incomplete request", "incomplete-request")
MALFORMED_HTTP = HttpProblem(400, "malformed HTTP", "malformed-http")
CROSS_ORIGIN = HttpProblem(403, "cross-origin request", "cross-origin")
HEAD_TOO_SLOW = HttpProblem(408, "head too slow", "head-too-slow")
BODY_TOO_SLOW = HttpProblem(408, "body too slow", "body-too-slow")
BODY_TOO_LARGE = HttpProblem(413, "body too large", "body-too-large")
MALFORMED_REQUEST = HttpProblem(422, "malformed request", "malformed-request")
HEAD_TOO_LARGE = HttpProblem(431, "head too large", "head-too-large")
NOT_READY = HttpProblem(503, "not ready", "not-ready")
HTTP_PROBLEMS = (
    *(INCOMPLETE_REQUEST, MALFORMED_HTTP, CROSS_ORIGIN, HEAD_TOO_SLOW, BODY_TOO_SLOW, BODY_TOO_LARGE),
    *(MALFORMED_REQUEST, HEAD_TOO_LARGE, NOT_READY),
)


def refused(status: int) -> HttpProblem:
    """What the framework refuses by itself, such as a route that does not exist."""
    return HttpProblem(status, "refused", None)


def problem_response(
    kind: type[LasroError] | HttpProblem, detail: str, headers: dict[str, str] | None = None
) -> Response:
    """A response with the problem's status; `detail` says on one line what was got, expected and to do."""
    body = wire.Problem(type=kind.problem_type(), title=kind.title, status=kind.http_status, detail=detail)
    return Response(body.model_dump_json(), kind.http_status, headers, media_type=PROBLEM_TYPE)


async def answer_busy(scope: Scope, receive: Receive, send: Send) -> None:
    """The app of a connection too many."""
    detail = "all connections are in use; try again later or raise LASRO_MAX_CONNECTIONS"
    headers = {"Retry-After": str(RETRY_AFTER_S), "Connection": "close"}
    await problem_response(BusyError, detail, headers)(scope, receive, send)
