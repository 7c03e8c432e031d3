"""Connections to reward endpoints: kept, given up, and never shared by two calls."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from lasro.wire import Protocol, RewardSpec, Status
from lasro_reward_api.endpoints.address_guard import AddressGuard, parse_networks
from lasro_reward_api.endpoints.connections import USER_AGENT, ConnectionPool, FailedAttempt
from lasro_reward_api.protocols import CODECS
from lasro_reward_api.protocols.base import HttpRequest, ItemResult

Result = list[ItemResult] | FailedAttempt
Attempt = Callable[..., Awaitable[Result]]
CONCURRENCY = 4


class Server:
    """Answers call number n with the score n, after `delays_s[n]`; hangs up after each reply where it `leaves`."""

    def __init__(self, leaves: bool = False, delays_s: dict[int, float] | None = None) -> None:
        self.leaves, self.delays_s = leaves, delays_s or {}
        self.heads, self.tasks = list[bytes](), list[asyncio.Task[Any]]()

    @property
    def connections(self) -> int:
        return len(self.tasks)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        while head := await self._request(reader):
            self.heads.append(head)
            number = len(self.heads)
            await asyncio.sleep(self.delays_s.get(number, 0.0))
            body = b'{"scores": [%d]}' % number
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            if self.leaves:
                break
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    @staticmethod
    async def _request(reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            (length,) = re.findall(rb"content-length: (\d+)", head, re.I)
            await reader.readexactly(int(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        return head


@asynccontextmanager
async def calling(server: Server, **spec: Any) -> AsyncIterator[Attempt]:
    """Calls of one image over connections of their own."""
    async with await asyncio.start_server(server.answer, "127.0.0.1", 0) as listening:
        url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
        reward = RewardSpec(name="connected", url=url, protocol=Protocol.NATIVE, concurrency=CONCURRENCY, **spec)
        guard = AddressGuard(parse_networks("127.0.0.0/8"))
        connections = ConnectionPool(reward, 1 << 20, guard, ssl.create_default_context())
        native = CODECS[Protocol.NATIVE]

        async def attempt(timeout_s: float = 20.0) -> Result:
            request = HttpRequest(b"{}", {"Content-Type": "application/json"})
            return await connections.attempt(
                request, lambda kind, body: native.decode(kind, body, 1, {}), timeout_s, {"X-Request-ID": "r"}
            )

        yield attempt
        await connections.aclose()
        await asyncio.gather(*server.tasks)


def test_calls_go_over_the_connections_that_there_are() -> None:
    """Bug: each call opens a connection of its own, or more are kept open than calls may be in flight."""

    async def scenario() -> None:
        server = Server()
        async with calling(server) as attempt:
            assert [await attempt() for _ in range(5)] == [[1], [2], [3], [4], [5]]
            assert server.connections == 1
            for _ in range(3):
                await asyncio.gather(*(attempt() for _ in range(CONCURRENCY)))
            assert server.connections <= CONCURRENCY
            await asyncio.gather(*(attempt() for _ in range(2 * CONCURRENCY)))
            opened = server.connections
            await asyncio.gather(*(attempt() for _ in range(CONCURRENCY)))
            assert server.connections == opened

    asyncio.run(scenario())


def test_a_connection_that_the_server_closed_is_replaced() -> None:
    """Bug: a call goes over a connection that is no more, and fails or is made twice."""

    async def scenario() -> None:
        server = Server(leaves=True)
        async with calling(server) as attempt:
            for number in (1, 2, 3):
                assert await attempt() == [number]
                await asyncio.sleep(0.05)
        assert server.connections == 3

    asyncio.run(scenario())


def test_a_late_reply_is_nobody_elses() -> None:
    """Bug: the reply to a call that was given up is taken for the reply to the next one."""

    async def scenario() -> None:
        server = Server(delays_s={1: 0.3})
        async with calling(server) as attempt:
            late = await attempt(0.05)
            assert isinstance(late, FailedAttempt)
            assert late.status is Status.TIMEOUT
            await asyncio.sleep(0.4)
            assert await attempt() == [2]

    asyncio.run(scenario())


@pytest.mark.parametrize("given", [{}, {"user-Agent": "mine", "ACCEPT": "text/plain"}])
def test_each_header_is_sent_once(given: dict[str, str]) -> None:
    """Bug: a header of the registration comes beside the API's own of the same name, in another case."""

    async def scenario() -> None:
        server = Server()
        async with calling(server, headers=given, secret="token") as attempt:
            assert await attempt() == [1]
        lines = server.heads[0].decode().split("\r\n")[1:-2]
        headers = dict(line.lower().split(": ", 1) for line in lines)
        assert len(headers) == len(lines)
        assert headers["user-agent"] == given.get("user-Agent", USER_AGENT)
        assert headers["authorization"] == "bearer token"
        assert headers["accept-encoding"] == "identity"
        assert headers["host"].startswith("127.0.0.1:")
        assert headers["x-request-id"] == "r"

    asyncio.run(scenario())
