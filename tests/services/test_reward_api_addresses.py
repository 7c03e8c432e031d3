"""Where a reward may live: the address table, and that the connection goes where the check looked."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasro.errors import BlockedError, ConfigError
from lasro_reward_api.endpoints.address_guard import AddressGuard, GuardedBackend, check_url, is_public, parse_networks

BLOCKED = [
    *("0.0.0.0", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.255.255.255", "169.254.169.254"),
    *("172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1"),
    *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1"),
    *("100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "5f00::1", "fc00::1", "fd12::1"),
    *("fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1"),
]
PUBLIC = ["1.1.1.1", "93.184.216.34", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1", "::ffff:1.1.1.1"]


@pytest.mark.parametrize("address", BLOCKED)
def test_special_addresses_are_not_public(address: str) -> None:
    """Bug: `ipaddress.is_global` says yes to multicast, NAT64, 6to4 and mapped forms."""
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_ordinary_addresses_are_public(address: str) -> None:
    """Bug: the table blocks scorers that anybody may reach."""
    assert is_public(address)


@given(st.ip_addresses())
def test_what_python_calls_private_is_never_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """Bug: a range that the standard library knows as private is missing from the table."""
    if address.is_private or address.is_multicast or address.is_loopback or address.is_link_local:
        assert not is_public(str(address)) or getattr(address, "ipv4_mapped", None) is not None


def test_plain_http_stays_inside_the_allowed_networks() -> None:
    """Bug: images and keys go over the internet in the clear."""
    guard = AddressGuard(parse_networks("10.5.0.0/16, ::1/128"))
    assert guard.permits("10.5.1.2", plain_http=True)
    assert guard.permits("::ffff:10.5.1.2", plain_http=True)
    assert guard.permits("10.5.1.2", plain_http=False)
    assert not guard.permits("10.6.0.1", plain_http=False)
    assert not guard.permits("1.1.1.1", plain_http=True)
    assert guard.permits("1.1.1.1", plain_http=False)


@pytest.mark.parametrize("text", ["10.0.0.0/33", "localhost", "10.0.0.1/8"])
def test_a_bad_list_of_networks_is_refused(text: str) -> None:
    """Bug: a typing error in LASRO_ALLOWED_NETWORKS allows or blocks everything in silence."""
    with pytest.raises(ConfigError, match="LASRO_ALLOWED_NETWORKS"):
        parse_networks(text)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "gopher://h/", "http://", "//h/", "http://u@h/", "http://h:70000/", "http://h\n/"]
)
def test_urls_that_are_no_plain_http_are_refused(url: str) -> None:
    """Bug: another scheme, or a user name that hides the host, gets through."""
    with pytest.raises(BlockedError, match="url"):
        check_url(url)


@pytest.mark.parametrize(
    "host", ["xn--a", "a b", "a%20b", "a..b", ".a", "a" * 64, "a.b" * 100, "a,b"], ids=lambda host: host[:8]
)
def test_hosts_that_no_resolver_takes_are_refused(host: str) -> None:
    """Bug: registering a reward at http://xn--a/ was answered 500, and one at http://a..b/ failed at every score."""
    with pytest.raises(BlockedError, match="url: "):
        check_url(f"https://{host}/score")


@pytest.mark.parametrize(
    "host", ["my_scorer:8000", "m\u00fcnchen.example", "scorer.example.", "[fe80::1%25eth0]:80", "[::1]"]
)
def test_hosts_that_resolvers_take_are_accepted(host: str) -> None:
    """Bug: a check of host names that refuses services of a composed stack, or names in other scripts."""
    assert check_url(f"https://{host}/score").scheme == "https"


def answers_of_a_name_server(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Make each look-up of `scorer.example` give the next of these answers; returns the names looked up."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def look_up(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        if host != "scorer.example":
            return real(host, port, *rest, **more)
        asked.append(host)
        addresses = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return asked


def test_a_second_dns_answer_is_never_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a name that is public when checked and private when connected to (DNS rebinding)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        asked = answers_of_a_name_server(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
        backend = GuardedBackend(AddressGuard(parse_networks("127.0.0.1/32")), plain_http=True)

        async def connect_twice() -> str:
            stream = await backend.connect_tcp("scorer.example", port, timeout=5)
            address = stream.get_extra_info("server_addr")[0]
            await stream.aclose()
            with pytest.raises(BlockedError, match=r"127\.0\.0\.2"):
                await backend.connect_tcp("scorer.example", port, timeout=5)
            return address

        assert asyncio.run(connect_twice()) == "127.0.0.1"
        assert len(asked) == 2


def test_a_name_that_turns_private_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a name that has a public address first and a private one next leads the second call to the private one."""
    connected: list[str] = []

    class Network(httpcore.AsyncMockBackend):
        async def connect_tcp(self, host: str, *rest: Any, **more: Any) -> httpcore.AsyncNetworkStream:
            connected.append(host)
            return await super().connect_tcp(host, *rest, **more)

    monkeypatch.setattr(httpcore, "AnyIOBackend", lambda: Network([]))
    answers_of_a_name_server(monkeypatch, ["93.184.216.34"], ["10.0.0.5"], ["93.184.216.34", "10.0.0.5"])
    backend = GuardedBackend(AddressGuard(parse_networks("127.0.0.0/8")), plain_http=False)
    asyncio.run(_connect(backend))
    with pytest.raises(BlockedError, match=r"scorer\.example is at 10\.0\.0\.5"):
        asyncio.run(_connect(backend))
    asyncio.run(_connect(backend))
    assert connected == ["93.184.216.34", "93.184.216.34"]


async def _connect(backend: GuardedBackend) -> None:
    stream = await backend.connect_tcp("scorer.example", 443)
    await stream.aclose()


def test_only_the_permitted_of_several_addresses_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: one good address among several lets the connection fall back to a forbidden one."""
    answers_of_a_name_server(monkeypatch, ["127.0.0.2", "127.0.0.1", "10.0.0.1"])
    guard = AddressGuard(parse_networks("127.0.0.1/32"))
    assert asyncio.run(guard.addresses("scorer.example", 80, plain_http=True)) == ["127.0.0.1"]


def test_names_that_cannot_be_resolved_are_connection_errors() -> None:
    """Bug: a label of 70 characters raises UnicodeError, and the request answers 500."""
    backend = GuardedBackend(AddressGuard(()), plain_http=False)
    with pytest.raises(httpcore.ConnectError, match="cannot be resolved"):
        asyncio.run(backend.connect_tcp("a" * 70 + ".example", 443))
    with pytest.raises(BlockedError):
        asyncio.run(backend.connect_unix_socket("/run/docker.sock"))
