"""A TCP proxy that can lose what passes it: requests before they arrive, replies after they were earned.

One thread serves all links; `Link.strike` is called from another.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

KINDS = ("cut-before", "cut-within", "cut-after", "stall", "swallow")
"""Lose a request; lose its second half; lose the reply; delay a reply; answer nothing more, without an end."""
CHUNK_BYTES = 1 << 16
STRIKES_WITHIN_S = 3.0
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Opener = Callable[[], Awaitable[Streams]]


@dataclass(eq=False)
class Fault:
    kind: str
    seconds: float
    struck: threading.Event = field(default_factory=threading.Event)


@dataclass(eq=False)
class _Connection:
    writers: list[asyncio.StreamWriter]
    loses_reply: Fault | None = None
    is_swallowed: bool = False

    def close(self) -> None:
        for writer in self.writers:
            writer.close()


class Link:
    """A port of its own before whatever `opener` connects to."""

    def __init__(self, loop: asyncio.AbstractEventLoop, opener: Opener) -> None:
        self._loop, self._open = loop, opener
        self._armed: deque[Fault] = deque()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), loop).result(10)

    async def _listen(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self._server.sockets[0].getsockname()[1]

    def strike(self, kind: str, seconds: float) -> bool:
        """Whether something passed soon that this could happen to."""
        fault = Fault(kind, seconds)
        self._loop.call_soon_threadsafe(self._armed.append, fault)
        if not fault.struck.wait(STRIKES_WITHIN_S):
            self._loop.call_soon_threadsafe(self._disarm, fault)
        return fault.struck.is_set()

    def _disarm(self, fault: Fault) -> None:
        if fault in self._armed:
            self._armed.remove(fault)

    def _due(self, *kinds: str) -> Fault | None:
        return self._armed.popleft() if self._armed and self._armed[0].kind in kinds else None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection([writer])
        with suppress(OSError):
            server_reader, server_writer = await self._open()
            connection.writers.append(server_writer)
            pumps = self._requests(connection, reader, server_writer), self._replies(connection, server_reader, writer)
            await asyncio.gather(*(_until_closed(connection, pump) for pump in pumps))
        connection.close()

    async def _requests(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            fault = self._due("cut-before", "cut-within", "cut-after")
            if fault is not None and fault.kind != "cut-after":
                fault.struck.set()
                writer.write(chunk[: len(chunk) // 2] if fault.kind == "cut-within" else b"")
                return
            connection.loses_reply = fault or connection.loses_reply
            writer.write(chunk)
            await writer.drain()

    async def _replies(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while chunk := await reader.read(CHUNK_BYTES):
            if connection.loses_reply is not None:
                connection.loses_reply.struck.set()
                return
            fault = self._due("stall", "swallow")
            if fault is not None:
                fault.struck.set()
                connection.is_swallowed = fault.kind == "swallow"
                await asyncio.sleep(fault.seconds if fault.kind == "stall" else 0)
            if not connection.is_swallowed:
                writer.write(chunk)
                await writer.drain()


async def _until_closed(connection: _Connection, pump: Awaitable[None]) -> None:
    with suppress(OSError):
        await pump
    connection.close()


class Proxies:
    """The thread that serves links. Context manager."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxies", daemon=True)

    def __enter__(self) -> Proxies:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def to_port(self, port: int) -> Link:
        return Link(self._loop, lambda: asyncio.open_connection("127.0.0.1", port))

    def to_socket(self, path: str) -> Link:
        return Link(self._loop, lambda: asyncio.open_unix_connection(path))
