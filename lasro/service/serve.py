"""Running a service process: its socket, its logs, its end."""

from __future__ import annotations

import gc
import ipaddress
import socket
import sys

import uvicorn
from fastapi import FastAPI

from lasro.errors import ConfigError
from lasro.service.child_process import die_with_parent
from lasro.service.environment import ServiceEnvironment
from lasro.service.logs import set_up_logs


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


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def freeze_startup_objects() -> None:
    """Have the garbage collector forget what is there now: looking through it holds all requests up for 50 ms."""
    gc.collect()
    gc.freeze()
