"""Fixtures that more than one suite needs."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import uvicorn
from hypothesis import HealthCheck, settings
from starlette.types import ASGIApp

from lasro.redis_store.connection import connect
from lasro.redis_store.embedded import EmbeddedRedis

Serve = Callable[[ASGIApp], str]

# Several workers, each with processes of its own, on as many cores: threads of all would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Embeddings of this session alone, which its workers and the processes that tests start share.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["LASRO_CACHE_DIR"] = tempfile.mkdtemp(prefix="lasro-cache-")
    atexit.register(shutil.rmtree, os.environ["LASRO_CACHE_DIR"], ignore_errors=True)

# On a busy machine an example may take long without anything being wrong.
settings.register_profile("lasro", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lasro")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-docs", action="store_true", help="write the parts of docs/ that tests check")


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server on a unix socket, shared by the whole session: use a run name or reward name of your own."""
    folder: Path = tmp_path_factory.mktemp("redis")
    with EmbeddedRedis(folder) as server:
        yield server.url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A connection to an emptied server."""
    with connect(redis_url) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="module")
def serve(redis_url: str) -> Iterator[Serve]:
    """Starts an app under real uvicorn, in a thread, on a free loopback port, and returns its URL.

    It asks for Redis so that apps which use it are stopped first.
    """
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start(app: ASGIApp) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive(), "the server ended while starting"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.005)
        servers.append((server, thread))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for server, _ in reversed(servers):
        server.should_exit = True
    for _, thread in servers:
        thread.join(30)
        assert not thread.is_alive(), "a server did not stop"


@pytest.fixture(scope="session")
def tiny_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `support/tiny_model.py`."""
    from tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def one_level_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a third of the modules: for what a run does, whatever the network is."""
    from tiny_model import ONE_LEVEL, write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "one-level", unet=ONE_LEVEL)
