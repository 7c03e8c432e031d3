"""Running a service process: its socket, its logs, its end."""

from __future__ import annotations

import functools
import gc
import logging
import socket
import sys

import uvicorn
from fastapi import FastAPI

from lasro.errors import ConfigError
from lasro.service.callers import is_loopback
from lasro.service.child_process import die_with_parent
from lasro.service.environment import ServiceEnvironment
from lasro.service.http_limits import HttpLimits, OpenConnections
from lasro.service.http_protocol import LimitedHttpProtocol
from lasro.service.logs import set_up_logs

log = logging.getLogger("lasro")
SPARE_DESCRIPTORS = 8
"""Left when connections are refused for want of descriptors, so that what refuses them can open a file or two."""


def run_service(app: FastAPI, settings: ServiceEnvironment) -> None:
    """Serve until SIGTERM or SIGINT; ends with the parent where it was started by `lasro up`."""
    die_with_parent()
    listener = bind(settings)
    set_up_logs(settings.log_level, settings.log_format)
    server = uvicorn.Server(server_config(app, settings))
    freeze_startup_objects()
    server.run(sockets=[listener])
    if not server.started:  # uvicorn has logged why, and would have the process end as if all were well
        sys.exit(1)


def server_config(app: FastAPI, settings: ServiceEnvironment) -> uvicorn.Config:
    """How uvicorn serves the app, within the limits that the settings give and the process has."""
    protocol = functools.partial(LimitedHttpProtocol, shared=OpenConnections(http_limits(settings)))
    return uvicorn.Config(
        app,
        http=protocol,  # pyright: ignore[reportArgumentType] - it is called as a class is
        ws="none",
        log_config=None,
        log_level=settings.log_level.lower(),
        access_log=False,
        timeout_graceful_shutdown=3,
        server_header=False,
    )


def http_limits(settings: ServiceEnvironment) -> HttpLimits:
    """Limits of connections; raises this process' soft limit of file descriptors to twice their number where it may."""
    descriptors = _descriptors(2 * settings.max_connections)
    connections = min(settings.max_connections, descriptors // 2)
    if connections < settings.max_connections:
        wanted = settings.max_connections
        log.warning("%d connections instead of %d: `ulimit -n` is %d, expected twice", connections, wanted, descriptors)
    return HttpLimits(
        connections,
        descriptors - SPARE_DESCRIPTORS,
        settings.max_head_bytes,
        settings.head_timeout_s,
        settings.body_timeout_s,
    )


def _descriptors(wanted: int) -> int:
    """How many files this process may have open, after asking for as many as wanted."""
    if sys.platform == "win32":
        return wanted + SPARE_DESCRIPTORS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = sys.maxsize if soft == resource.RLIM_INFINITY else soft
    if limit < wanted and hard != soft:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


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
    if not settings.knows_callers and not is_loopback(host):
        raise ConfigError(f"bound to {host} without a key; set LASRO_API_KEY, or LASRO_HOST=127.0.0.1")
    return listener


def freeze_startup_objects() -> None:
    """Have the garbage collector forget what is there now: looking through it holds all requests up for 50 ms."""
    gc.collect()
    gc.freeze()
