"""What a connection may cost before there is a request: heads, bodies and answers that do not end, and their number."""

from __future__ import annotations

import logging
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response

from lasro.service.app import create_service
from lasro.service.content_types import read_body
from lasro.service.environment import ServiceEnvironment
from lasro.service.serve import bind, server_config
from lasro_reward_api.app import create_app
from lasro_reward_api.settings import RewardApiSettings

GET = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
SCORER = "from lasro.reward_sdk import reward\n\n\n@reward\ndef zero(*_):\n    return []\n"
LARGE = 64 << 20
"""More bytes than the sockets of both ends hold."""


def service(settings: ServiceEnvironment) -> FastAPI:
    async def ready() -> None:
        return None

    app = create_service("test", settings, ready)

    @app.post("/echo")
    async def echo(request: Request) -> Response:
        return Response((await read_body(request)).content)

    @app.get("/large")
    async def large() -> Response:
        return Response(bytes(LARGE))

    return app


@contextmanager
def running(app: FastAPI, settings: ServiceEnvironment) -> Iterator[tuple[int, uvicorn.Server]]:
    """The app behind the limits that `run_service` sets; its port and server."""
    listener = bind(settings)
    server = uvicorn.Server(server_config(app, settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield listener.getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[int, uvicorn.Server]]]:
    """Starts the service with these settings; its port and server."""
    with ExitStack() as exits:

        def started(**given: Any) -> tuple[int, uvicorn.Server]:
            settings = ServiceEnvironment.model_validate(given)
            return exits.enter_context(running(service(settings), settings))

        yield started


def connected(port: int, timeout_s: float = 10.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout_s)


def all_of(caller: socket.socket) -> bytes:
    """What comes until the connection ends."""
    parts = []
    while part := caller.recv(65536):
        parts.append(part)
    return b"".join(parts)


def answer(port: int, request: bytes = GET) -> bytes:
    """The first bytes of the answer to a request of its own connection."""
    with connected(port) as caller:
        caller.sendall(request)
        return caller.recv(65536)


def receive_what_comes(caller: socket.socket) -> bytes:
    """The same of a connection that may be cut."""
    with suppress(ConnectionError):
        return all_of(caller)
    return b""


def send_for(caller: socket.socket, part: bytes, times: int = 500) -> None:
    """Send it every 10 ms; raises ConnectionError once the connection is closed."""
    for _ in range(times):
        caller.sendall(part)
        time.sleep(0.01)


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_s
        time.sleep(0.01)


@pytest.mark.parametrize(
    "sent",
    [b"GET /health/live HTTP/1.1\r\nX-A: ", b"\r\n", GET + b"GET /heal", POST + b"Content-Length: 2\r\n\r\n{}POST /"],
    ids=["half a head", "blank lines", "half of a second head", "half a head after a body"],
)
def test_a_head_has_a_deadline(start: Callable[..., tuple[int, uvicorn.Server]], sent: bytes) -> None:
    """Bug: 3,000 connections with half a head stayed for ever, those that sent a byte now and then among them."""
    port, server = start(head_timeout_s=0.4)
    with connected(port) as caller:
        caller.sendall(sent)
        for _ in range(3):
            time.sleep(0.1)
            caller.sendall(b"\r\n" if sent == b"\r\n" else b"a")
        reply = all_of(caller)
    assert b"HTTP/1.1 408 " in reply
    assert b"urn:lasro:problem:head-too-slow" in reply
    wait_for(lambda: not server.server_state.connections)


def test_a_connection_that_says_nothing_is_closed_without_a_word(
    start: Callable[..., tuple[int, uvicorn.Server]],
) -> None:
    """Bug: an open connection costs a descriptor for as long as its other end likes."""
    port, _ = start(head_timeout_s=0.1)
    with connected(port) as caller:
        assert all_of(caller) == b""


@pytest.mark.parametrize(
    "sent",
    [
        GET[:-2] + b"X-A: " + b"a" * 4000,
        GET[:-2] + b"X-A: a\r\n" * 600,
        b"GET /" + b"a" * 4000,
        GET[:-2] + b"X-A: " + b"a" * 2000 + b"\r\n\r\n",
        POST + b"Content-Length: 9000\r\nX-A: " + b"a" * 2000 + b"\r\n\r\n" + b" " * 9000,
    ],
    ids=["one long header", "many headers", "a long path", "a whole head", "a whole head and its body"],
)
def test_a_head_has_a_size(start: Callable[..., tuple[int, uvicorn.Server]], sent: bytes) -> None:
    """Bug: 300 MB of headers were taken in before the key was looked at."""
    port, server = start(max_head_bytes=1024)
    with connected(port) as caller:
        caller.sendall(sent)
        caller.shutdown(socket.SHUT_WR)
        reply = all_of(caller)
    assert reply.startswith(b"HTTP/1.1 431 ")
    assert b"urn:lasro:problem:head-too-large" in reply
    wait_for(lambda: not server.server_state.connections)


def test_the_size_of_a_head_is_that_of_all_its_parts(start: Callable[..., tuple[int, uvicorn.Server]]) -> None:
    """Bug: a head that comes in parts, each of them small, is as large as it likes."""
    port, _ = start(max_head_bytes=1024)
    with connected(port) as caller:
        caller.sendall(GET[:-2] + b"X-A: " + b"a" * 700)
        time.sleep(0.05)
        caller.sendall(b"a" * 700 + b"\r\n\r\n")
        assert caller.recv(65536).startswith(b"HTTP/1.1 431 ")


def test_a_large_body_is_no_large_head(start: Callable[..., tuple[int, uvicorn.Server]]) -> None:
    """Bug: a body that comes in one piece with its head counts as head, or one in small chunks with their sizes."""
    port, _ = start(max_head_bytes=1024)
    whole = POST + b"Content-Length: 60000\r\n\r\n" + b" " * 60000
    assert answer(port, whole).startswith(b"HTTP/1.1 200 ")
    with connected(port) as caller:
        caller.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(300):
            caller.sendall(b"1\r\n \r\n")
        caller.sendall(b"0\r\n\r\n" + GET)
        assert caller.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_trailers_do_not_go_on_for_ever(start: Callable[..., tuple[int, uvicorn.Server]]) -> None:
    """Bug: what follows a chunked body is kept like its headers and counted by nobody."""
    port, server = start(max_head_bytes=1024)
    with connected(port) as caller:
        caller.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\n \r\n0\r\n")
        with pytest.raises(ConnectionError):
            send_for(caller, b"X-Trailer: " + b"a" * 1000 + b"\r\n")
    wait_for(lambda: not server.server_state.connections)


def test_a_large_head_is_not_answered_in_place_of_the_request_before(
    start: Callable[..., tuple[int, uvicorn.Server]],
) -> None:
    """Bug: a caller that sends on without waiting takes the second request's refusal for the answer to its first."""
    port, _ = start(max_head_bytes=1024)
    head = POST + b"Content-Length: 2\r\n\r\n{}"
    with connected(port) as caller:
        caller.sendall(head + GET[:-2] + b"X-A: " + b"a" * 4000 + b"\r\n\r\n")
        assert b" 431 " not in receive_what_comes(caller)


@pytest.mark.parametrize(
    "sent",
    [GET, GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")],
    ids=["plain", "offers of HTTP/2"],
)
def test_many_requests_at_once_do_not_hold_up_others(
    start: Callable[..., tuple[int, uvicorn.Server]], caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    """Bug: a hundred connections with 1,300 requests in one packet each stopped the service for half a minute."""
    port, server = start()
    with connected(port) as caller, suppress(ConnectionError):
        caller.sendall(sent * 1000)
        caller.settimeout(5)
        receive_what_comes(caller)
    wait_for(lambda: not server.server_state.connections)
    assert server.server_state.total_requests < 20
    assert "requests sent before the first was answered" in caplog.text
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []
    with connected(port) as caller:
        caller.sendall(GET * 10 + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        assert all_of(caller).count(b"HTTP/1.1 200 ") == 11


def test_nothing_is_answered_to_a_caller_that_left(
    start: Callable[..., tuple[int, uvicorn.Server]], caplog: pytest.LogCaptureFixture
) -> None:
    """Bug: each request that a caller had sent on before it left was answered all the same, with a traceback logged."""
    port, server = start()
    for _ in range(20):
        with connected(port) as caller:
            caller.sendall(GET * 10)
    wait_for(lambda: not server.server_state.connections and not server.server_state.tasks)
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("pieces", [1, 2], ids=["at once", "body later"])
def test_an_offer_of_http_2_is_ignored(start: Callable[..., tuple[int, uvicorn.Server]], pieces: int) -> None:
    """Bug: the body of every POST of Java's HttpClient, which offers HTTP/2 with each, was lost and read as a head."""
    port, _ = start()
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    head = POST + offer + b"Content-Length: 12\r\n\r\n"
    with connected(port) as caller:
        for body in (b'{"round": 1}', b'{"round": 2}'):
            for part in (head + body,) if pieces == 1 else (head, body):
                caller.sendall(part)
                time.sleep(0.02)
            received = caller.recv(65536)
            while b"\r\n\r\n" not in received or not received.endswith(b"}"):
                received += caller.recv(65536)
            assert received.startswith(b"HTTP/1.1 200 ")
            assert received.endswith(body)


def test_a_tunnel_is_refused(start: Callable[..., tuple[int, uvicorn.Server]]) -> None:
    """Bug: a service that reads CONNECT again and again, as if it were an offer that it can do without."""
    port, _ = start()
    assert answer(port, b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("evil.example", "localhost", 400),
        ("localhost", "evil.example", 400),
        ("evil.example", "evil.example", 403),
        ("localhost", "localhost", 200),
    ],
)
def test_the_host_of_a_whole_url_counts(
    start: Callable[..., tuple[int, uvicorn.Server]], target: str, host: str, status: int
) -> None:
    """Bug: GET http://evil.example/ was let in by a Host header that the standard has servers ignore."""
    port, _ = start()
    reply = answer(port, f"GET http://{target}/health/live HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert reply.startswith(b"HTTP/1.1 %d " % status)


def test_a_trickled_body_takes_no_scoring_place(redis_url: str) -> None:
    """Bug: 256 bodies of a byte now and then held every scoring place, for as long as they liked."""
    given = {"redis_url": redis_url, "max_requests": 1, "body_timeout_s": 0.4, "min_body_rate": 1000}
    settings = RewardApiSettings.model_validate(given)
    head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with running(create_app(settings), settings) as (port, _), ExitStack() as exits:
        slow = [exits.enter_context(connected(port)) for _ in range(3)]
        for caller in slow:
            caller.sendall(head + b"Content-Length: 5000\r\n\r\n{")
        assert answer(port, head + b"Content-Length: 2\r\n\r\n{}").startswith(b"HTTP/1.1 422 ")
        for _ in range(10):
            time.sleep(0.1)
            for caller in slow:
                if not select.select([caller], [], [], 0)[0]:
                    caller.sendall(b" ")
        replies = [all_of(caller) for caller in slow]
    assert all(reply.startswith(b"HTTP/1.1 408 ") for reply in replies), replies
    assert all(b"expected at least 1000 a second" in reply for reply in replies), replies


def test_a_body_that_was_answered_before_it_came_has_a_deadline(
    start: Callable[..., tuple[int, uvicorn.Server]],
) -> None:
    """Bug: a caller without a key is answered at once, and then keeps its connection by a byte now and then."""
    port, server = start(api_key="k", body_timeout_s=0.3)
    with connected(port) as caller:
        caller.sendall(POST + b"Content-Length: 1000\r\n\r\n")
        assert caller.recv(65536).startswith(b"HTTP/1.1 401 ")
        with pytest.raises(ConnectionError):
            send_for(caller, b" ")
    wait_for(lambda: not server.server_state.connections)


def test_an_answer_that_nobody_reads_has_a_deadline(start: Callable[..., tuple[int, uvicorn.Server]]) -> None:
    """Bug: a caller that asks for weights and reads none keeps them in memory for ever."""
    port, server = start(body_timeout_s=0.3)
    request = b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connected(port) as unread, connected(port) as slow:
        unread.sendall(request)
        slow.sendall(request)
        received = 0
        for _ in range(16):
            time.sleep(0.05)
            received += len(slow.recv(4 << 20))
        wait_for(lambda: len(server.server_state.connections) == 1)
        while received < LARGE:
            received += len(slow.recv(4 << 20))


def test_the_longest_waiting_makes_room(
    start: Callable[..., tuple[int, uvicorn.Server]], caplog: pytest.LogCaptureFixture
) -> None:
    """Bug: whoever opens enough connections shuts everybody else out, and no line says why."""
    port, server = start(max_connections=4)
    with caplog.at_level(logging.WARNING), ExitStack() as exits:
        idle = exits.enter_context(connected(port))
        idle.sendall(GET)
        assert idle.recv(65536).startswith(b"HTTP/1.1 200 ")
        for _ in range(20):
            exits.enter_context(connected(port)).sendall(b"GET /")
        assert answer(port).startswith(b"HTTP/1.1 200 ")
        assert idle.recv(1) == b""
        assert len(server.server_state.connections) <= 4
    assert "more than 4 connections: LASRO_MAX_CONNECTIONS is the limit" in caplog.text
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_a_connection_too_many_is_answered(start: Callable[..., tuple[int, uvicorn.Server]]) -> None:
    """Bug: where every connection has a request under way, a further one hangs or is cut off."""
    port, _ = start(max_connections=2)
    with connected(port) as one, connected(port) as two:
        for caller in (one, two):
            caller.sendall(POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
            assert caller.recv(65536).startswith(b"HTTP/1.1 100 ")
        refused = answer(port)
        one.sendall(b"{}")
        assert one.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in refused.lower()
    assert b"urn:lasro:problem:busy" in refused


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /health/live HTTP/1.1\r\n\r\n",
        GET[:-2] + b"Host: evil.example\r\n\r\n",
        POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        POST + b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}",
        GET[:-2] + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n\r\n",
        b"GET\r\n\r\n",
    ],
    ids=["no host", "two hosts", "two lengths", "length and chunks", "two types", "two keys", "no HTTP"],
)
def test_a_request_that_can_be_read_in_two_ways_is_refused(
    start: Callable[..., tuple[int, uvicorn.Server]], request_: bytes
) -> None:
    """Bug: of two headers one server reads the first and another the last, and what one has checked the other does."""
    port, _ = start()
    reply = answer(port, request_)
    assert reply.startswith(b"HTTP/1.1 400 ")
    assert b"urn:lasro:problem:malformed-http" in reply


def test_no_descriptors_left(tmp_path: Path) -> None:
    """Bug: with `ulimit -n 64` a hundred connections stopped all service, without a line in the log."""
    (tmp_path / "scorer.py").write_text(SCORER)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        port = listener.getsockname()[1]
        command = f"ulimit -n 64; exec {sys.executable} -m lasro.reward_sdk scorer:zero"
        environment = os.environ | {"LASRO_LISTEN_FD": str(listener.fileno()), "LASRO_LOG_FORMAT": "text"}
        environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        child = subprocess.Popen(
            ["bash", "-c", command], env=environment, pass_fds=[listener.fileno()], stderr=subprocess.PIPE, text=True
        )
    try:
        with ExitStack() as exits:
            assert answer(port).startswith(b"HTTP/1.1 200 ")
            for _ in range(100):
                exits.enter_context(connected(port)).sendall(b"GET /")
            assert answer(port).startswith(b"HTTP/1.1 200 ")
        assert answer(port).startswith(b"HTTP/1.1 200 ")
    finally:
        child.terminate()
        _, log = child.communicate(timeout=20)
    assert "32 connections instead of 1024: `ulimit -n` is 64" in log
    assert "more than 32 connections" in log
