"""Plain TCP under httpcore, against real listeners, on both event loops that the service may run on."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import httpcore
import pytest
import uvloop

from lasro_reward_api.endpoints.sockets import connect

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    def run_on_it(main: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(main)

    return run_on_it


class Server(threading.Thread):
    """Takes one connection and hands it to `talk`; what that returns is in `seen`."""

    def __init__(self, talk: Callable[[socket.socket], Any], address: str = "127.0.0.1") -> None:
        super().__init__(daemon=True)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener, self._talk = socket.create_server((address, 0), family=family), talk
        self.port: int = self._listener.getsockname()[1]
        self.seen: Any = None
        self.start()

    def run(self) -> None:
        with self._listener, self._listener.accept()[0] as connection:
            connection.settimeout(10)
            with suppress(ConnectionError):  # whoever has seen enough hangs up
                self.seen = self._talk(connection)


async def answer_to(port: int, body: bytes, address: str = "127.0.0.1") -> bytes:
    origin = httpcore.Origin(b"http", b"scorer", port)
    stream = await connect(address, port, timeout=5)
    async with httpcore.AsyncHTTP11Connection(origin, stream) as connection:
        url = httpcore.URL(scheme=b"http", host=b"scorer", port=port, target=b"/")
        reply = await connection.request("POST", url, headers={"Host": "scorer"}, content=body)
        return reply.content


def test_a_request_goes_out_in_one_piece(run: Run) -> None:
    """Bug: head and body are sent one by one, and the endpoint wakes twice a call."""

    def talk(connection: socket.socket) -> bytes:
        received = connection.recv(65536)
        connection.sendall(ANSWER)
        return received

    server = Server(talk)
    assert run(answer_to(server.port, b"x" * 1000)) == b"ok"
    server.join(10)
    assert server.seen.startswith(b"POST / HTTP/1.1\r\n")
    assert server.seen.endswith(b"\r\n\r\n" + b"x" * 1000)


def test_large_bodies_arrive_whole(run: Run) -> None:
    """Bug: what does not fit the socket's buffer at once is lost."""
    size = 8_000_000

    def talk(connection: socket.socket) -> int:
        received = b""
        while not received.partition(b"\r\n\r\n")[2][size - 1 : size]:
            received += connection.recv(1 << 20)
        connection.sendall(ANSWER)
        return len(received.partition(b"\r\n\r\n")[2])

    server = Server(talk)
    assert run(answer_to(server.port, bytes(size))) == b"ok"
    server.join(10)
    assert server.seen == size


def test_an_answer_that_comes_before_the_body_was_read_is_read(run: Run) -> None:
    """Bug: an endpoint that refuses a large body at once counts as one that broke down, and is asked again."""

    def talk(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(ANSWER)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 20):
            pass

    assert run(answer_to(Server(talk).port, bytes(4_000_000))) == b"ok"


def test_ipv6(run: Run) -> None:
    """Bug: only IPv4 addresses can be connected to."""

    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(ANSWER)

    try:
        server = Server(talk, "::1")
    except OSError:
        pytest.skip("no IPv6 on this machine")
    assert run(answer_to(server.port, b"x", "::1")) == b"ok"


def test_what_a_server_says_unasked_shows_before_the_next_request(run: Run) -> None:
    """Bug: a second answer, or a hang-up, is taken for the answer to the next call."""

    async def look(port: int) -> tuple[bool, bool]:
        stream = await connect("127.0.0.1", port, timeout=5)
        before = stream.get_extra_info("is_readable")
        await stream.write(b"now")
        with pytest.raises(httpcore.ReadTimeout):
            await stream.read(10, timeout=0.05)
        for _ in range(200):
            if stream.get_extra_info("is_readable"):
                break
            await asyncio.sleep(0.02)
        after = stream.get_extra_info("is_readable")
        await stream.aclose()
        return before, after

    def talk(connection: socket.socket) -> None:
        connection.recv(10)
        threading.Event().wait(0.3)
        connection.sendall(ANSWER)
        connection.recv(10)

    assert run(look(Server(talk).port)) == (False, True)


def test_what_cannot_be_reached_is_a_connection_error(run: Run) -> None:
    """Bug: an OSError of the socket ends the request with 500."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(httpcore.ConnectError):
        run(connect("127.0.0.1", port, timeout=5))


def test_a_connection_that_is_reset_is_a_read_error(run: Run) -> None:
    """Bug: a scorer that crashes in the middle of a call ends the request with 500."""

    def talk(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")

    with pytest.raises((httpcore.ReadError, httpcore.RemoteProtocolError)):
        run(answer_to(Server(talk).port, b"x"))
