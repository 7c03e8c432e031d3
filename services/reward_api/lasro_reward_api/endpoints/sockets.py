"""Plain TCP for httpcore, on the event loop's own socket calls.

httpcore's own backend yields to the event loop before every write and read, and sends head and body of a request
separately. When eight calls of a reward end together, each yield lets the answers of the others be processed first, and
the next call waits behind them.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
from contextlib import ExitStack, suppress
from typing import Any

import httpcore


class SocketStream(httpcore.AsyncNetworkStream):
    """Buffers what is written and sends it when an answer is read, so that a request goes out in one piece."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket, self._unsent = connected, b""
        self._loop = asyncio.get_running_loop()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            async with asyncio.timeout(timeout):
                await self._flush()
                return await self._loop.sock_recv(self._socket, max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(f"no data within {timeout} s") from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._unsent += buffer

    async def _flush(self) -> None:
        unsent, self._unsent = self._unsent, b""
        if unsent:
            # A server may answer and hang up before it has read everything: the answer is there to be read.
            with suppress(OSError):
                await self._loop.sock_sendall(self._socket, unsent)

    async def aclose(self) -> None:
        self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            return bool(poll.poll(0))
        return self._socket.getpeername() if info == "server_addr" else None


async def connect(address: str, port: int, timeout: float | None = None) -> httpcore.AsyncNetworkStream:
    """A stream to an IP address. Raises httpcore.ConnectError and httpcore.ConnectTimeout."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with ExitStack() as stack:
        opened = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.get_running_loop().sock_connect(opened, (address, port))
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"no connection within {timeout} s") from error
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise httpcore.ConnectError(f"{address} port {port}: {reason}") from error
        stack.pop_all()
    return SocketStream(opened)
