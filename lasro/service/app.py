"""What every LaSRO service shares: settings, problem+json, API keys, body limits, health, metrics, start-up.

app = create_service("LaSRO reward API", settings, ready=check_redis)
run_service(app, settings)
"""

from __future__ import annotations

import asyncio
import gc
import hmac
import ipaddress
import logging
import re
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import lru_cache
from typing import Literal, TypeVar

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lasro import wire
from lasro.errors import AuthError, BusyError, ConfigError, LasroError
from lasro.service.child_process import die_with_parent
from lasro.service.logs import new_request_id, set_request_id, set_up_logs
from lasro.service.openapi import PROBLEM_TYPE

log = logging.getLogger("lasro")
OPEN_PATHS = ("/health/live", "/health/ready", "/metrics", "/openapi.json")
RETRY_AFTER_S = 1
"""Told to whoever comes while there is too much to do."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
M = TypeVar("M", bound=wire.Message)


class ServiceEnvironment(BaseSettings):
    """Settings of a service process, read from `LASRO_*` variables."""

    model_config = SettingsConfigDict(env_prefix="LASRO_", frozen=True, use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address to bind."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port to bind; 0 takes a free one."""
    listen_fd: int | None = None
    """An already listening socket, inherited from `lasro up`; overrides host and port."""
    api_key: SecretStr | None = None
    """Wanted in `Authorization: Bearer`; required unless bound to loopback."""
    redis_url: SecretStr | None = None
    """Redis 7.0+ or Valkey 8+."""
    allowed_networks: str = ""
    """CIDRs, comma-separated, that registered rewards may live in with plain http."""
    max_body_bytes: int = Field(default=256 << 20, ge=1024)
    """Largest request body."""
    body_timeout_s: float = Field(default=30.0, gt=0, le=3600)
    """Longest wait for the next part of a request body; a client that sends none holds its place no longer."""
    log_level: str = "info"
    """Of this process."""
    log_format: Literal["json", "text"] = "json"
    """One JSON object a line, or text for people."""

    @property
    def knows_callers(self) -> bool:
        """Whether strangers are turned away, as they must be unless bound to loopback."""
        return self.api_key is not None


def problem(status: int, title: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    body = wire.Problem(title=title, status=status, detail=detail)
    return Response(body.model_dump_json(), status, headers, media_type=PROBLEM_TYPE)


def create_service(
    title: str,
    settings: ServiceEnvironment,
    ready: Callable[[], Awaitable[None]],
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None,
    metrics: CollectorRegistry | None = None,
) -> FastAPI:
    """An app with health, metrics, problem+json, key and limits; `ready` raises LasroError while it is not."""
    registry = metrics or CollectorRegistry()
    app = FastAPI(
        title=title,
        version="1",
        lifespan=lifespan,
        redoc_url=None,
        # FastAPI's own, in versions that have it: to ask at each request whether it is set up takes a twentieth of the
        # time of a cached answer. What there is to measure is under /metrics.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    _add_error_handlers(app)
    app.add_middleware(_Gate, settings=settings, registry=registry)

    @app.get("/health/live", summary="The process answers")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @app.get("/health/ready", summary="Ready for work", responses={503: {"model": wire.Problem}})
    async def is_ready() -> Response:
        try:
            await ready()
        except LasroError as error:
            return problem(503, "not ready", str(error))
        return Response('{"status":"ready"}', media_type="application/json")

    @app.get("/metrics", summary="Prometheus metrics", include_in_schema=False)
    async def scrape() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(LasroError)
    async def ours(_: Request, error: LasroError) -> Response:
        headers = {"Retry-After": str(RETRY_AFTER_S)} if isinstance(error, BusyError) else None
        return problem(error.http_status, error.title, str(error), headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return problem(422, "malformed request", f"{'.'.join(map(str, first['loc']))}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        return problem(error.status_code, "refused", str(error.detail), dict(error.headers or {}))

    @app.exception_handler(ClientDisconnect)
    async def hung_up(request: Request, _: ClientDisconnect) -> Response:
        log.info("%s %s: the caller hung up before it had sent the body", request.method, request.url.path)
        return problem(400, "incomplete request", "the connection ended before the body did; send it again")

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem(500, "internal error", "unforeseen failure; see the service's log")


class _BodyTooLarge(Exception):
    pass


class _BodyTooSlow(Exception):
    pass


class _Gate:
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

        refusal = self._refusal(scope["path"], headers)
        try:
            if refusal is not None:
                await refusal(scope, receive, send_with_id)
            else:
                await self.app(scope, self._limited(receive), send_with_id)
        except _BodyTooLarge:
            await self._too_large()(scope, receive, send_with_id)
        except _BodyTooSlow:
            detail = f"nothing came for {self.settings.body_timeout_s:g} s, expected the rest; send it again"
            await problem(408, "body too slow", detail, {"Connection": "close"})(scope, receive, send_with_id)
        except asyncio.CancelledError:
            if is_answered:
                raise
            # The server is going down and drops its requests; uvicorn would answer 500, which nobody sends again.
            detail = "the service is being stopped; ask again once it is back"
            await problem(503, BusyError.title, detail, {"Retry-After": str(RETRY_AFTER_S)})(
                scope, receive, send_with_id
            )
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

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> Response | None:
        key = self.settings.api_key
        if key is not None and path not in OPEN_PATHS:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + key.get_secret_value().encode()):
                detail = "expected the header 'Authorization: Bearer KEY' with the service's LASRO_API_KEY"
                return problem(401, AuthError.title, detail, {"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.settings.max_body_bytes:
            return self._too_large()
        return None

    def _too_large(self) -> Response:
        return problem(413, "body too large", f"expected at most {self.settings.max_body_bytes} bytes")

    def _limited(self, receive: Receive) -> Receive:
        size_bytes, is_whole = 0, False

        async def limited() -> Message:
            nonlocal size_bytes, is_whole
            if is_whole:  # what comes now is the end of the connection, whenever that is
                return await receive()
            try:
                async with asyncio.timeout(self.settings.body_timeout_s):
                    message = await receive()
            except TimeoutError as error:
                raise _BodyTooSlow from error
            is_whole = not message.get("more_body", False)
            size_bytes += len(message.get("body", b""))
            if size_bytes > self.settings.max_body_bytes:
                raise _BodyTooLarge
            return message

        return limited


async def read_message(request: Request, kind: type[M]) -> M:
    """The request body as a message: msgpack where the content type says so, else JSON; raises WireError."""
    body = await request.body()
    if request.headers.get("content-type", "").partition(";")[0].strip() == wire.MSGPACK_TYPE:
        return wire.from_msgpack(kind, body)
    return wire.from_json(kind, body)


def reply(request: Request, message: wire.Message | wire.Fields, status: int = 200) -> Response:
    """A message in the form the caller accepts: msgpack where asked for, else JSON."""
    if wire.MSGPACK_TYPE in request.headers.get("accept", ""):
        return Response(wire.to_msgpack(message), status, media_type=wire.MSGPACK_TYPE)
    return Response(wire.to_json(message), status, media_type="application/json")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(settings: ServiceEnvironment) -> socket.socket:
    """The listening socket; refuses a public address without an API key."""
    if settings.listen_fd is not None:
        listener = socket.socket(fileno=settings.listen_fd)
        host = listener.getsockname()[0]
    else:
        host = settings.host
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, settings.port))
        except OSError as error:
            raise ConfigError(f"cannot bind {host}:{settings.port} ({error.strerror}); set LASRO_PORT") from error
    if not settings.knows_callers and not _is_loopback(host):
        raise ConfigError(f"bound to {host} without a key; set LASRO_API_KEY, or LASRO_HOST=127.0.0.1")
    return listener


def run_service(app: FastAPI, settings: ServiceEnvironment) -> None:
    """Serve until SIGTERM or SIGINT; ends with the parent where it was started by `lasro up`."""
    die_with_parent()
    listener = bind(settings)
    set_up_logs(settings.log_level, settings.log_format)
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level=settings.log_level.lower(),
        access_log=False,
        timeout_graceful_shutdown=3,
        server_header=False,
    )
    freeze_startup_objects()
    server = uvicorn.Server(config)
    server.run(sockets=[listener])
    if not server.started:  # uvicorn has logged why, and would have the process end as if all were well
        sys.exit(1)


def freeze_startup_objects() -> None:
    """Have the garbage collector forget what is there now: looking through it holds all requests up for 50 ms."""
    gc.collect()
    gc.freeze()
