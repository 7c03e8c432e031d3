"""The app of a service: health and metrics routes, problem+json for every error, messages in and out.

app = create_service("LaSRO reward API", settings, ready=check_redis)
run_service(app, settings)
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Literal, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from lasro import wire
from lasro.errors import BusyError, DeviceMemoryError, LasroError
from lasro.service.content_types import Body, read_body
from lasro.service.environment import ServiceEnvironment
from lasro.service.middleware import RequestGate
from lasro.service.openapi import DocumentedApi, problems
from lasro.service.paths import PathPrefix, allowed_methods
from lasro.service.problem import (
    INCOMPLETE_REQUEST,
    MALFORMED_REQUEST,
    NOT_READY,
    RETRY_AFTER_S,
    problem_response,
    refused,
)

log = logging.getLogger("lasro")
M = TypeVar("M", bound=wire.Message)


class Health(wire.Message):
    status: Literal["live", "ready"]


def create_service(
    title: str,
    settings: ServiceEnvironment,
    ready: Callable[[], Awaitable[None]],
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
    metrics: CollectorRegistry | None = None,
) -> FastAPI:
    """An app with health, metrics, problem+json, key and limits; `ready` raises LasroError while it is not."""
    registry = metrics or CollectorRegistry()
    app = DocumentedApi(
        title,
        settings,
        lifespan=lifespan,
        redoc_url=None,
        # FastAPI's own, in versions that have it: to ask at each request whether it is set up takes a twentieth of the
        # time of a cached answer. What there is to measure is under /metrics.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    _add_error_handlers(app)
    app.add_middleware(RequestGate, settings=settings, registry=registry)
    if settings.root_path:
        app.add_middleware(PathPrefix, prefix=settings.root_path)
    _add_health_routes(app, ready)

    @app.get("/metrics", summary="Prometheus metrics", include_in_schema=False)
    async def scrape() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _add_health_routes(app: FastAPI, ready: Callable[[], Awaitable[None]]) -> None:
    @app.get("/health/live", tags=["health"], summary="The process answers", responses=problems(is_open=True))
    async def live() -> Health:
        """For the supervisor that would start the process again."""
        return Health(status="live")

    @app.get(
        "/health/ready",
        tags=["health"],
        summary="Ready for work",
        response_model=Health,
        responses=problems(503, is_open=True),
    )
    async def is_ready() -> Response:
        """For the balancer that sends requests here; the problem says what is not ready."""
        try:
            await ready()
        except LasroError as error:
            return problem_response(NOT_READY, str(error))
        return Response('{"status":"ready"}', media_type="application/json")


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(LasroError)
    async def ours(_: Request, error: LasroError) -> Response:
        headers = {"Retry-After": str(RETRY_AFTER_S)} if isinstance(error, BusyError) else None
        return problem_response(type(error), str(error), headers)

    @app.exception_handler(MemoryError)
    async def exhausted(request: Request, error: MemoryError) -> Response:
        log.error("%s %s ran out of memory", request.method, request.url.path, exc_info=error)
        return problem_response(
            DeviceMemoryError, "the service has too little memory for this request; send a smaller one"
        )

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return problem_response(MALFORMED_REQUEST, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        if error.status_code == 405:  # the framework names the methods of one route, of those that the path may have
            headers["Allow"] = allowed_methods(request)
        return problem_response(refused(error.status_code), str(error.detail), headers)

    @app.exception_handler(ClientDisconnect)
    async def hung_up(request: Request, _: ClientDisconnect) -> Response:
        log.info("%s %s: the caller hung up before it had sent the body", request.method, request.url.path)
        return problem_response(INCOMPLETE_REQUEST, "the connection ended before the body did; send it again")

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem_response(LasroError, "unforeseen failure; see the service's log")


async def read_message(request: Request, kind: type[M]) -> M:
    """The request body as a message, JSON or msgpack by its content type; raises WireError."""
    return parse_message(await read_body(request), kind)


def parse_message(body: Body, kind: type[M]) -> M:
    """A body of JSON or msgpack as a message; raises WireError."""
    if body.content_type == wire.MSGPACK_TYPE:
        return wire.from_msgpack(kind, body.content)
    return wire.from_json(kind, body.content)


def reply(request: Request, message: wire.Message | wire.Fields, status: int = 200) -> Response:
    """A message in the form the caller accepts: msgpack where asked for, else JSON."""
    if wire.MSGPACK_TYPE in request.headers.get("accept", ""):
        return Response(wire.to_msgpack(message), status, media_type=wire.MSGPACK_TYPE)
    return Response(wire.to_json(message), status, media_type="application/json")
