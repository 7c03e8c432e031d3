"""What a service does with requests that do not come to an end."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp

from lasro.errors import BusyError
from lasro.service.serve import bind
from lasro_client.services.http import send
from lasro_reward_api.app import create_app
from lasro_reward_api.settings import RewardApiSettings

HEAD = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"


def test_a_body_that_does_not_come_takes_no_place(redis_url: str, serve: Callable[[ASGIApp], str]) -> None:
    """Bug: clients that send half a request, or a byte now and then, hold all places of the service."""
    settings = RewardApiSettings(redis_url=redis_url, body_timeout_s=0.5, max_requests=1)  # pyright: ignore[reportArgumentType]
    url = serve(create_app(settings))
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "", address.port or 0), 30) as slow:
        slow.sendall(HEAD + b'{"prompts"')
        time.sleep(0.1)
        meanwhile = httpx.post(f"{url}/v1/score", json={}, trust_env=False)
        reply = b"".join(iter(lambda: slow.recv(4096), b""))
    assert meanwhile.status_code == 422
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert b"nothing came for 0.5 s" in reply


def test_who_waits_while_the_service_is_stopped_is_told_to_ask_again(redis_url: str) -> None:
    """Bug: what was under way when a service got SIGTERM was answered 500, and the client's run ended."""
    settings = RewardApiSettings.model_validate({"redis_url": redis_url})
    app = create_app(settings)

    @app.get("/slow")
    async def slow() -> None:
        await asyncio.sleep(60)

    listener = bind(settings)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=60, trust_env=False) as http:
        threading.Timer(0.5, setattr, (server, "should_exit", True)).start()
        with pytest.raises(BusyError, match="being stopped"):
            send(http, "GET", "/slow")
    thread.join()


def test_a_caller_that_hangs_up_is_no_failure_of_the_service(
    redis_url: str, serve: Callable[[ASGIApp], str], caplog: pytest.LogCaptureFixture
) -> None:
    """Bug: a connection cut in the middle of a body was an unforeseen failure, with a traceback and a 500."""
    settings = RewardApiSettings.model_validate({"redis_url": redis_url})
    parts = urlsplit(serve(create_app(settings)))
    with caplog.at_level(logging.INFO), socket.create_connection((parts.hostname, parts.port), timeout=10) as caller:
        caller.sendall(HEAD + b"{")
        time.sleep(0.2)
        caller.close()
        deadline = time.monotonic() + 20
        while "hung up" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.02)
    assert "hung up before it had sent the body" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
