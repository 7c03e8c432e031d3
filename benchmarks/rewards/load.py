"""Posting as fast as one process can: keep-alive HTTP/1.1 connections with one request under way on each.

Hand-made because a client of comfort needs more CPU for a request than the service that is measured.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psutil
import uvloop

T = TypeVar("T")
Next = Callable[[], bytes | None]
"""The next request; None ends the load."""


@dataclass(frozen=True)
class Load:
    """What came of one load: all answers were 200."""

    wall_s: float
    cpu_s: float
    """Of the process that answered."""
    latencies_s: list[float]

    @property
    def rate(self) -> float:
        return len(self.latencies_s) / self.wall_s

    @property
    def cpu_ms(self) -> float:
        """Per request."""
        return 1000 * self.cpu_s / len(self.latencies_s)

    def quantile_ms(self, share: float) -> float:
        return 1000 * quantile(self.latencies_s, share)


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def request_bytes(url: str, body: bytes, content_type: str) -> bytes:
    """A whole POST, as it goes over the wire."""
    parts = urlsplit(url)
    head = (
        f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {content_type}\r\n"
        f"Accept: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Connection(asyncio.Protocol):
    """One answer at a time, with the Content-Length that all servers here send."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: Any = None  # uvloop's is no subclass of asyncio's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator or len(body) < _length(head):
            return
        self._received = bytearray()
        assert self._answer is not None, "an answer that nobody asked for"
        if head.startswith(b"HTTP/1.1 200"):
            self._answer.set_result(bytes(body))
        else:
            self._answer.set_exception(ConnectionError(f"{head[:15].decode()}: {body[:300].decode(errors='replace')}"))

    async def post(self, request: bytes) -> bytes:
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self._transport.close()


def _length(head: bytes | bytearray) -> int:
    (value,) = (line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    return int(value)


async def post_all(url: str, pid: int, next_request: Next, concurrency: int) -> Load:
    """Send what `next_request` gives over so many connections; raises ConnectionError for any answer but 200."""
    loop = asyncio.get_running_loop()
    host, port = urlsplit(url).hostname, urlsplit(url).port
    assert host is not None
    assert port is not None
    made = [await loop.create_connection(_Connection, host, port) for _ in range(concurrency)]
    latencies_s: list[float] = []

    async def keep_posting(connection: _Connection) -> None:
        while (request := next_request()) is not None:
            started_s = time.perf_counter()
            await connection.post(request)
            latencies_s.append(time.perf_counter() - started_s)

    process = psutil.Process(pid)
    cpu_s, started_s = cpu_seconds(process), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _, connection in made:
            group.create_task(keep_posting(connection))
    wall_s, cpu_s = time.perf_counter() - started_s, cpu_seconds(process) - cpu_s
    for _, connection in made:
        connection.close()
    return Load(wall_s, cpu_s, latencies_s)


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def for_seconds(requests: Iterator[bytes], seconds: float, least: int) -> Next:
    """`requests`, which never end, until the time is up and so many were sent, however slow the machine is."""
    end_s, numbers = time.perf_counter() + seconds, itertools.count()
    return lambda: next(requests) if next(numbers) < least or time.perf_counter() < end_s else None


def run(work: Coroutine[Any, Any, T]) -> T:
    """On the event loop that uvicorn serves with."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
