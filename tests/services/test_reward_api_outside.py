"""What the world may do to the API's outgoing connections and its registry: TLS names, proxies, floods, crowds."""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import redis
import trustme
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from lasro.redis_store import keys
from lasro.redis_store.registry import Registration
from lasro.wire import Protocol, RewardSpec, Status
from lasro_client.services.reward_client import RewardClient
from lasro_reward_api.app import create_app
from lasro_reward_api.endpoints.address_guard import AddressGuard, parse_networks
from lasro_reward_api.endpoints.connections import ConnectionPool, FailedAttempt
from lasro_reward_api.endpoints.pool import MAX_OPEN, EndpointPool
from lasro_reward_api.metrics import RewardMetrics
from lasro_reward_api.protocols import CODECS
from lasro_reward_api.protocols.base import HttpRequest, ItemResult
from lasro_reward_api.settings import RewardApiSettings

Serve = Callable[[ASGIApp], str]
LOOPBACK = AddressGuard(parse_networks("127.0.0.0/8"))
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


def spec(url: str, name: str = "outside") -> RewardSpec:
    return RewardSpec(name=name, url=url, protocol=Protocol.NATIVE, timeout_s=20)


def attempt(url: str, tls: ssl.SSLContext, max_reply_bytes: int = 1 << 20) -> list[ItemResult] | FailedAttempt:
    """One call of one image, from inside a running loop's own thread."""

    async def call() -> list[ItemResult] | FailedAttempt:
        connections = ConnectionPool(spec(url), max_reply_bytes, LOOPBACK, tls)
        native = CODECS[Protocol.NATIVE]
        try:
            request = HttpRequest(b"{}", {"Content-Type": "application/json"})
            return await connections.attempt(request, lambda kind, body: native.decode(kind, body, 1, {}), 20.0, {})
        finally:
            await connections.aclose()

    return asyncio.run(call())


@asynccontextmanager
async def tls_scorer(authority: trustme.CA) -> AsyncIterator[int]:
    """A server that is scorer.example by certificate, and answers any request with one score."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("scorer.example").configure_cert(context)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\nConnection: close\r\n\r\n{"scores": [1.5]}')
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


def everything_is_at_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.getaddrinfo

    def look_up(host: Any, *rest: Any, **more: Any) -> Any:
        return real("127.0.0.1" if str(host).endswith(".example") else host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.mark.parametrize(
    ("host", "trusted", "reason"),
    [
        ("scorer.example", True, None),
        ("other.example", True, "Hostname mismatch"),
        ("127.0.0.1", True, "IP address mismatch"),
        ("scorer.example", False, "certificate verify failed"),
    ],
)
def test_tls_names_are_checked_though_the_address_is_pinned(
    monkeypatch: pytest.MonkeyPatch, host: str, trusted: bool, reason: str | None
) -> None:
    """Bug: connecting to a checked address instead of the name turns the certificate's name check off."""
    everything_is_at_loopback(monkeypatch)
    authority = trustme.CA()
    context = ssl.create_default_context()
    if trusted:
        authority.configure_trust(context)

    async def scenario() -> list[ItemResult] | FailedAttempt:
        async with tls_scorer(authority) as port:
            return await asyncio.to_thread(attempt, f"https://{host}:{port}/", context)

    result = asyncio.run(scenario())
    if reason is None:
        assert result == [1.5]
    else:
        assert isinstance(result, FailedAttempt)
        assert result.status is Status.UNREACHABLE
        assert reason in result.error


def test_proxy_variables_are_ignored(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    """Bug: HTTP_PROXY in the environment takes every call, secrets included, past the address guard."""
    app = FastAPI()

    @app.post("/")
    async def score() -> dict[str, list[float]]:
        return {"scores": [2.5]}

    url = serve(app)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        for name in PROXIES:
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("NO_PROXY", "")
        assert attempt(f"{url}/", ssl.create_default_context()) == [2.5]
        with pytest.raises(BlockingIOError):
            proxy.accept()


@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_gigabyte_of_reply_costs_no_memory(serve: Serve, status: int) -> None:
    """Bug: a scorer that streams without end fills the memory of the API, by its answer or by its error."""
    app = FastAPI()

    @app.post("/")
    async def flood() -> StreamingResponse:
        async def gigabyte() -> AsyncIterator[bytes]:
            for _ in range(1024):
                yield bytes(1 << 20)

        return StreamingResponse(gigabyte(), status, media_type="application/json")

    url = serve(app)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = attempt(f"{url}/", ssl.create_default_context())
    grown_kib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) // (
        1 if sys.platform == "linux" else 1024
    )
    assert isinstance(result, FailedAttempt)
    assert result.status is (Status.BAD_REPLY if status == 200 else Status.HTTP_ERROR)
    assert grown_kib < 128 * 1024


@pytest.mark.parametrize(
    "address",
    ["[2002:7f00:1::]", "[fe80::1]", "[ff02::1]", "224.0.0.1", "100.100.100.200", "[::127.0.0.1]", "[fd00:ec2::254]",
     "[64:ff9b::a9fe:a9fe]", "[::ffff:169.254.169.254]", "192.0.0.192", "0x7f000001", "127.1", "localhost"],
)  # fmt: skip
def test_no_way_of_writing_an_address_gets_past_the_guard(address: str) -> None:
    """Bug: one of the many ways to spell loopback or the metadata service is connected to."""

    async def call() -> list[ItemResult] | FailedAttempt:
        nowhere = AddressGuard(())
        connections = ConnectionPool(spec(f"https://{address}:1/"), 1024, nowhere, ssl.create_default_context())
        try:
            return await connections.attempt(HttpRequest(b"{}"), lambda kind, body: [], 20.0, {})
        finally:
            await connections.aclose()

    result = asyncio.run(call())
    assert isinstance(result, FailedAttempt)
    assert result.status in (Status.BLOCKED, Status.UNREACHABLE)
    assert result.status is Status.BLOCKED or "cannot be resolved" in result.error


def test_ten_thousand_rewards_are_listed_by_page(redis_url: str, redis_client: redis.Redis, serve: Serve) -> None:
    """Bug: a crowd of registrations makes the list unreadable, the API slow, or Redis large."""
    before_bytes = redis_client.info("memory")["used_memory"]
    names = [f"crowd-{number:05}" for number in range(10_000)]
    stored = {name: b"1 " + spec("http://127.0.0.1:1/", name).model_dump_json().encode() for name in names}
    redis_client.hset(keys.REWARDS, mapping=stored)  # pyright: ignore[reportArgumentType]
    assert redis_client.info("memory")["used_memory"] - before_bytes < 10_000 * 1024
    url = serve(create_app(RewardApiSettings(redis_url=redis_url)))  # pyright: ignore[reportArgumentType]
    listed: list[str] = []
    while page := httpx.get(f"{url}/v1/rewards", params={"limit": 1000, "after": listed[-1] if listed else ""}).json()[
        "rewards"
    ]:
        listed += [reward["name"] for reward in page]
    assert listed == names
    with RewardClient(url) as client:
        assert len(client.rewards()) == 10_000
        assert client.reward(names[5000]).name == names[5000]
    assert httpx.get(f"{url}/v1/rewards", params={"limit": 0}).status_code == 422


def test_connections_are_kept_to_few_rewards_only() -> None:
    """Bug: every reward ever called keeps a client, its pool and its TLS sessions open."""

    async def scenario() -> None:
        endpoints = EndpointPool(RewardApiSettings(), RewardMetrics(CollectorRegistry()))
        for number in range(MAX_OPEN + 50):
            endpoints.get(Registration(spec("https://scorer.example/", f"r{number}"), 1))
        await endpoints.tidy()
        assert len(endpoints) == MAX_OPEN
        await endpoints.forget("r200")
        assert len(endpoints) == MAX_OPEN - 1
        await endpoints.aclose()

    asyncio.run(scenario())
