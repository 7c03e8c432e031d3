"""redis-py's clients, made to outlive a restart or a failover of the server.

A connection that the server has closed is found before a command is sent on it. A command whose connection was lost
is sent once more where that is safe. One that a demoted server refused is sent again on a new connection, since the
name may stand for another server by now.
"""

from __future__ import annotations

import select
from asyncio import StreamWriter
from collections.abc import Sequence
from typing import Any

import redis
import redis.asyncio
from redis import exceptions
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection

from lasro.redis_store.lua import may_be_repeated


def _is_lost(error: exceptions.ConnectionError) -> bool:
    """Whether a new connection may help: not where the server answers, and refuses the password or still loads."""
    return not isinstance(error, exceptions.AuthenticationError | exceptions.BusyLoadingError)


class Client(redis.Redis):
    """For threads. The pool of redis-py finds closed connections by itself."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute_command(*args, **options)
        except exceptions.ConnectionError as error:
            if not (_is_lost(error) and may_be_repeated(args)):
                raise
        except exceptions.ReadOnlyError:
            self.connection_pool.disconnect(inuse_connections=False)
        return super().execute_command(*args, **options)


class AsyncClient(redis.asyncio.Redis):
    """For asyncio."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().execute_command(*args, **options)
        except exceptions.ConnectionError as error:
            if not (_is_lost(error) and may_be_repeated(args)):
                raise
        except exceptions.ReadOnlyError:
            await self.connection_pool.disconnect(inuse_connections=False)
        return await super().execute_command(*args, **options)

    async def pipelined(self, commands: Sequence[tuple[Any, ...]], raise_on_error: bool = True) -> list[Any]:
        """Replies to several commands in one round trip, sent once more where all of them may be."""
        try:
            return await self._sent(commands, raise_on_error)
        except exceptions.ConnectionError as error:
            if not (_is_lost(error) and all(map(may_be_repeated, commands))):
                raise
        return await self._sent(commands, raise_on_error)

    async def _sent(self, commands: Sequence[tuple[Any, ...]], raise_on_error: bool) -> list[Any]:
        async with self.pipeline(transaction=False) as pipeline:
            for command in commands:
                pipeline.execute_command(*command)
            return await pipeline.execute(raise_on_error)


class _ClosedIsFound(AbstractConnection):
    """A connection that looks, whenever the pool hands it out, whether the server has closed it.

    redis-py's own look misses what the event loop has not read yet, and on TCP with RESP3 it does not look at all.
    """

    _looked_at: tuple[StreamWriter, select.poll] | None = None

    async def connect(self) -> None:
        if self.is_connected:
            if not self._has_something_to_read():
                return
            await self.disconnect(nowait=True)
        await super().connect()

    def _has_something_to_read(self) -> bool:
        """True of a closed connection, which is at its end, and of one that holds a reply nobody waited for."""
        writer = self._writer
        if writer is None or writer.is_closing():
            return True
        if self._looked_at is None or self._looked_at[0] is not writer:
            poller = select.poll()
            poller.register(writer.get_extra_info("socket").fileno(), select.POLLIN)
            self._looked_at = writer, poller
        return bool(self._looked_at[1].poll(0))


class _Plain(_ClosedIsFound, Connection):
    pass


class _Encrypted(_ClosedIsFound, SSLConnection):
    pass


class _Local(_ClosedIsFound, UnixDomainSocketConnection):
    pass


CHECKED: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: _Plain,
    SSLConnection: _Encrypted,
    UnixDomainSocketConnection: _Local,
}
