"""Fixtures that more than one suite needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from lasro.redis_store.connection import connect
from lasro.redis_store.embedded import EmbeddedRedis


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server on a unix socket, shared by the whole session: use a run name or reward name of your own."""
    folder: Path = tmp_path_factory.mktemp("redis")
    with EmbeddedRedis(folder) as server:
        yield server.url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A connection to an emptied server."""
    client = connect(redis_url)
    client.flushall()
    with client:
        yield client
