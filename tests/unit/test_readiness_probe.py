"""`python -m lasro.service.readiness_probe`, by which a container engine knows whether a service works."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI

from lasro.errors import BusyError
from lasro.service.app import create_service
from lasro.service.environment import ServiceEnvironment
from lasro.service.readiness_probe import main, problem


def ready_app(error: str | None) -> FastAPI:
    async def ready() -> None:
        if error is not None:
            raise BusyError(error)

    return create_service("a service", ServiceEnvironment(), ready)


@contextmanager
def answering(status: int, body: bytes) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_a_ready_service_is_healthy_and_one_that_is_not_says_why(serve, monkeypatch, capsys) -> None:
    """Bug: a container is healthy because its process lives, or unhealthy and nobody can see the reason."""
    ready, busy = (urlsplit(serve(ready_app(error))).port for error in (None, "a model does not\nanswer"))
    monkeypatch.setenv("LASRO_PORT", str(ready))
    assert main() == 0
    monkeypatch.setenv("LASRO_PORT", str(busy))
    assert main() == 1
    assert capsys.readouterr().out == "HTTP 503: a model does not answer\n"


@pytest.mark.parametrize(("body", "told"), [(b"<html>\nno", "HTTP 500: <html> no"), (b"[]", "HTTP 500: []")])
def test_a_foreign_answer_is_no_health(body: bytes, told: str) -> None:
    """Bug: whatever else listens at the port makes the check fail with a traceback."""
    with answering(500, body) as port:
        assert problem(port) == told


def test_nobody_there_is_no_health() -> None:
    """Bug: while the service starts, the engine's log fills with tracebacks."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    told = problem(port)
    assert told is not None
    assert told.startswith(f"port {port} does not answer")


def test_the_check_loads_next_to_nothing() -> None:
    """Bug: asked every few seconds, in each container, it would cost more than the idle service."""
    heavy = "{'fastapi', 'httpx', 'numpy', 'pydantic'}"
    code = f"import sys, lasro.service.readiness_probe; print(*sorted(set(sys.modules) & {heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
