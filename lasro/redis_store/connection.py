"""Connections to Redis, and redis-py's errors as LaSRO's.

redis-py 8 retries ten times by default, which turns one XADD with a lost reply into two entries, and times a
blocking read out after five seconds. Both are set here on purpose: no retry inside redis-py (`lua` says what may be
sent again, `clients` sends it), and a socket timeout above MAX_BLOCK_MS.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
import redis.asyncio
from redis import exceptions
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from lasro.errors import ConfigError, LockedOutError, StorageError, TimeoutExceededError, UnreachableError
from lasro.redis_store.clients import CHECKED, AsyncClient, Client
from lasro.redis_store.url import check_url

MAX_CONNECTIONS = 256
"""Of one process at once. Further commands wait for one: redis-py would refuse them, from 100 on by default."""
MAX_BLOCK_MS = 5_000
"""Longest blocking read that callers may ask of Redis."""
SOCKET_TIMEOUT_S = 15.0
"""For any reply: above MAX_BLOCK_MS, so that it fires only when the server hangs."""
CONNECT_TIMEOUT_S = 3.0
READ_BYTES = 1 << 20
"""Bytes asked of the socket per read: a reply with samples holds megabytes."""
LONGEST_REASON = 500
"""Most characters kept of the reason why an entry is dead-lettered."""
FREE_SPACE = "free memory or disk and try again"
NO_WRITES: tuple[tuple[type[exceptions.RedisError], str], ...] = (
    (exceptions.OutOfMemoryError, FREE_SPACE),
    (exceptions.ReadOnlyError, "it is a read-only replica: name the primary in LASRO_REDIS_URL"),
    (exceptions.ClusterDownError, "its cluster lacks nodes or slots: bring them back"),
    (exceptions.AskError, "another node of its cluster holds our keys: name that one in LASRO_REDIS_URL"),
)
"""Errors of a server that takes no writes, MovedError among them, and what to do."""
NO_WRITES_WORDS = {"OOM": FREE_SPACE, "MISCONF": FREE_SPACE, "NOREPLICAS": "bring its replicas back"}
"""The same for errors that redis-py knows by their text only."""
NO_RIGHT_WORDS = ("ACL failure", "The user executing the script")
"""What newer servers, and Redis 7.0, say where a script does what the user may not."""


def _options() -> dict[str, Any]:
    return {
        "decode_responses": False,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "health_check_interval": 30,
    }


def connect(url: str | None) -> Client:
    """A synchronous client that returns bytes; connects at its first command. Raises ConfigError."""
    checked, retry = check_url(url), Retry(NoBackoff(), 0)
    with _url_errors():
        pool = redis.ConnectionPool.from_url(checked, retry=retry, socket_read_size=READ_BYTES, **_options())
        pool.connection_class(**pool.connection_kwargs)  # connects nobody, and refuses settings that it does not know
    client = Client(connection_pool=pool)
    client.auto_close_connection_pool = True
    return client


def connect_async(url: str | None) -> AsyncClient:
    """The same for asyncio."""
    checked, retry = check_url(url), AsyncRetry(NoBackoff(), 0)
    with _url_errors():
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            checked, retry=retry, max_connections=MAX_CONNECTIONS, timeout=SOCKET_TIMEOUT_S, **_options()
        )
        pool.connection_class = CHECKED[pool.connection_class]
        pool.connection_class(**pool.connection_kwargs)
    client = AsyncClient(connection_pool=pool)
    client.auto_close_connection_pool = True
    return client


@contextmanager
def _url_errors() -> Iterator[None]:
    """Map what redis-py finds wrong with a URL's settings; its words may hold a value of the URL, so they go."""
    try:
        yield
    except (ValueError, TypeError, exceptions.RedisError) as error:
        raise ConfigError(
            "LASRO_REDIS_URL: got a host, or a setting behind ?, that redis-py does not know (not shown); "
            "expected redis://[[NAME]:PASSWORD@]HOST[:PORT][/DATABASE] and settings of its documentation"
        ) from error


@contextmanager
def redis_errors() -> Iterator[None]:
    """Map redis-py's errors: timeouts, lost connections, wrong passwords, servers that take no writes or are old."""
    try:
        yield
    except exceptions.TimeoutError as error:
        raise TimeoutExceededError(f"Redis did not answer in time ({error})") from error
    except exceptions.AuthenticationError as error:
        raise LockedOutError(f"Redis refuses the name or password in LASRO_REDIS_URL ({error})") from error
    except exceptions.ConnectionError as error:
        raise UnreachableError(f"Redis cannot be reached ({error}); check LASRO_REDIS_URL") from error
    except exceptions.RedisError as error:
        raise _refusal(error) from error


def _refusal(error: exceptions.RedisError) -> LockedOutError | StorageError:
    """What it means that the server answered with an error."""
    said = str(error).partition(" script: ")[0]
    if isinstance(error, exceptions.NoPermissionError) or any(words in said for words in NO_RIGHT_WORDS):
        return LockedOutError(
            f"Redis forbids the user in LASRO_REDIS_URL a command ({said}); permit scripts, reading and writing of "
            "the keys {lasro}:*"
        )
    remedies = [remedy for kind, remedy in NO_WRITES if isinstance(error, kind)]
    remedies += [remedy for word, remedy in NO_WRITES_WORDS.items() if word in said]
    if remedies:
        return StorageError(f"Redis takes no writes ({said}); {remedies[0]}")
    return StorageError(f"Redis refused a command ({said}); expected Redis 7.0+ or Valkey 8+")
