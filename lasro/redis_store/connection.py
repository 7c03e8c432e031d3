"""Connections to Redis, and redis-py's errors as LaSRO's.

redis-py 8 retries ten times by default, which turns one XADD with a lost reply into two entries, and times a
blocking read out after five seconds. Both are set here on purpose: no retry inside the client (every script of
`scripts/` may safely be sent again by whoever knows that it should be), and a socket timeout above MAX_BLOCK_MS.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis import exceptions
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from lasro.errors import ConfigError, LockedOutError, StorageError, TimeoutExceededError, UnreachableError

MAX_BLOCK_MS = 5_000
"""Longest blocking read that callers may ask of Redis."""
SOCKET_TIMEOUT_S = 15.0
"""For any reply: above MAX_BLOCK_MS, so that it fires only when the server hangs."""
CONNECT_TIMEOUT_S = 3.0
READ_BYTES = 1 << 20
"""Bytes asked of the socket per read: a reply with samples holds megabytes."""
LONGEST_REASON = 500
"""Most characters kept of the reason why an entry is dead-lettered."""
NO_WRITES = ("OOM", "MISCONF", "NOREPLICAS", "READONLY")


def _options(url: str | None) -> dict[str, Any]:
    if not url:
        raise ConfigError("no Redis given; set LASRO_REDIS_URL to redis://, rediss:// or unix://")
    return {
        "decode_responses": False,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "health_check_interval": 30,
    }


def connect(url: str | None) -> redis.Redis:
    """A synchronous client that returns bytes; connects at its first command. Raises ConfigError."""
    try:
        return redis.Redis.from_url(
            url or "", retry=Retry(NoBackoff(), 0), socket_read_size=READ_BYTES, **_options(url)
        )
    except ValueError as error:
        raise ConfigError(f"LASRO_REDIS_URL: {error}") from error


def connect_async(url: str | None) -> redis.asyncio.Redis:
    """The same for asyncio."""
    try:
        return redis.asyncio.Redis.from_url(url or "", retry=AsyncRetry(NoBackoff(), 0), **_options(url))
    except ValueError as error:
        raise ConfigError(f"LASRO_REDIS_URL: {error}") from error


def without_password(url: str) -> str:
    """A Redis URL for messages and logs."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def script(name: str) -> str:
    """The text of `scripts/NAME.lua`.

    Those that empty the queue are allowed to run when Redis is out of memory; the others add to it.
    """
    return resources.files("lasro.redis_store").joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8")


@contextmanager
def redis_errors() -> Iterator[None]:
    """Map redis-py's errors: timeouts, lost connections, wrong passwords, servers that take no writes or are old."""
    try:
        yield
    except exceptions.TimeoutError as error:
        raise TimeoutExceededError(f"Redis did not answer in time ({error})") from error
    except (exceptions.AuthenticationError, exceptions.NoPermissionError) as error:
        raise LockedOutError(f"Redis refuses the name or password in LASRO_REDIS_URL ({error})") from error
    except exceptions.ConnectionError as error:
        raise UnreachableError(f"Redis cannot be reached ({error}); check LASRO_REDIS_URL") from error
    except exceptions.RedisError as error:
        if isinstance(error, exceptions.OutOfMemoryError) or any(word in str(error) for word in NO_WRITES):
            raise StorageError(f"Redis takes no writes ({error}); free memory or disk and try again") from error
        raise StorageError(f"Redis refused a command ({error}); expected Redis 7.0+ or Valkey 8+") from error
