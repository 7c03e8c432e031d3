"""What every request passes before a service's routes see it: API key, size and pace of its body, id, metrics."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lasro.errors import BusyError
from lasro.service import callers
from lasro.service.callers import OPEN_PATHS
from lasro.service.environment import ServiceEnvironment
from lasro.service.logs import new_request_id, set_request_id
from lasro.service.paths import METHODS
from lasro.service.problem import BODY_TOO_LARGE, BODY_TOO_SLOW, RETRY_AFTER_S, problem_response

log = logging.getLogger("lasro")
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class _BodyTooLarge(Exception):
    pass


class _BodyTooSlow(Exception):
    """Says how slow."""


class RequestGate:
    """Key check, body limit, request id, and the two request metrics, before and around the app."""

    def __init__(self, app: ASGIApp, settings: ServiceEnvironment, registry: CollectorRegistry) -> None:
        self.app, self.settings = app, settings
        labels = ["method", "route", "status"]
        count = Counter("lasro_http_requests", "Requests answered", labels, registry=registry)
        seconds = Histogram("lasro_http_request_seconds", "Time to answer", ["route"], registry=registry)
        # Finding a series takes the client longer than counting; there are few of either.
        self.count, self.seconds = lru_cache(1024)(count.labels), lru_cache(1024)(seconds.labels)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status, is_answered = time.perf_counter(), 500, False
        headers = dict(scope["headers"])
        given_id = headers.get(b"x-request-id", b"")
        request_id = given_id if REQUEST_ID.fullmatch(given_id) else new_request_id().encode()
        set_request_id(request_id.decode())

        async def send_with_id(message: Message) -> None:
            nonlocal status, is_answered
            if message["type"] == "http.response.start":
                status, is_answered = message["status"], True
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id)]
            await send(message)

        refusal = callers.refusal(scope, headers, self.settings) or self._refused_size(headers)
        try:
            if refusal is not None:
                await refusal(scope, receive, send_with_id)
            else:
                await self.app(scope, self._limited(receive), send_with_id)
        except _BodyTooLarge:
            await self._too_large()(scope, receive, send_with_id)
        except _BodyTooSlow as error:
            answer = problem_response(BODY_TOO_SLOW, str(error), {"Connection": "close"})
            await answer(scope, receive, send_with_id)
        except asyncio.CancelledError:
            if is_answered:
                raise
            # The server is going down and drops its requests; uvicorn would answer 500, which nobody sends again.
            detail = "the service is being stopped; ask again once it is back"
            await problem_response(BusyError, detail, {"Retry-After": str(RETRY_AFTER_S)})(scope, receive, send_with_id)
        finally:
            self._answered(scope, status, time.perf_counter() - started)

    def _answered(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.count(method, route, status).inc()
        self.seconds(route).observe(seconds)
        level = logging.DEBUG if route in OPEN_PATHS else logging.INFO
        about = {"method": method, "route": route, "status": status, "duration_ms": round(1000 * seconds, 1)}
        log.log(level, "%s %s answered %d", method, route, status, extra=about)

    def _refused_size(self, headers: dict[bytes, bytes]) -> Response | None:
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.settings.max_body_bytes:
            return self._too_large()
        return None

    def _too_large(self) -> Response:
        return problem_response(BODY_TOO_LARGE, f"expected at most {self.settings.max_body_bytes} bytes")

    def _limited(self, receive: Receive) -> Receive:
        size_bytes, is_whole, started_s = 0, False, time.monotonic()
        timeout_s, rate = self.settings.body_timeout_s, self.settings.min_body_rate

        async def limited() -> Message:
            nonlocal size_bytes, is_whole
            if is_whole:  # what comes now is the end of the connection, whenever that is
                return await receive()
            try:
                async with asyncio.timeout(timeout_s):
                    message = await receive()
            except TimeoutError as error:
                raise _BodyTooSlow(f"nothing came for {timeout_s:g} s, expected the rest; send it again") from error
            is_whole = not message.get("more_body", False)
            size_bytes += len(message.get("body", b""))
            if size_bytes > self.settings.max_body_bytes:
                raise _BodyTooLarge
            taken_s = time.monotonic() - started_s
            if not is_whole and size_bytes < rate * (taken_s - timeout_s):
                got = f"{size_bytes} bytes came in {taken_s:.0f} s"
                raise _BodyTooSlow(f"{got}, expected at least {rate} a second; send it again, faster")
            return message

        return limited
