"""Which addresses a reward may live at, enforced where the connection is made.

A name is resolved once, its addresses are checked, and the connection goes to a checked address, so that a second
answer of a name server cannot lead elsewhere. TLS still verifies the name, since only the TCP connection is pinned.
The table is our own because `ipaddress.is_global` says yes to multicast, NAT64, 6to4 and more.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import httpcore
import httpx

from lasro.errors import BlockedError, ConfigError
from lasro_reward_api.endpoints.sockets import connect

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Connect = Callable[[str, int, float | None], Awaitable[httpcore.AsyncNetworkStream]]

# IANA special-purpose registries, multicast, class E, and the prefixes that tunnel to IPv4 addresses.
NOT_PUBLIC: tuple[Network, ...] = tuple(
    map(
        ipaddress.ip_network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24"),
            *("192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
            *("224.0.0.0/4", "240.0.0.0/4", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
        ),
    )
)
GLOBAL_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")
HOST = re.compile(
    r"(?!.{254})[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?|[0-9a-f]*:[0-9a-f:.]+(%[a-z0-9._-]+)?", re.IGNORECASE
)
"""A name or an address as resolvers take them: for others Python raises errors of its encodings."""
HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
HEADER_VALUE = re.compile(r"[\x20-\x7e]{0,4096}")
OWN_HEADERS = (
    *("host", "content-length", "content-type", "transfer-encoding", "connection", "accept-encoding"),
    *("webhook-id", "webhook-timestamp", "webhook-signature", "x-request-id", "x-request-timeout-s"),
)


def parse_networks(text: str) -> tuple[Network, ...]:
    """`LASRO_ALLOWED_NETWORKS`: CIDRs separated by commas; raises ConfigError."""
    try:
        return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ConfigError(f"LASRO_ALLOWED_NETWORKS: {error}; expected for example 127.0.0.0/8,10.5.0.0/16") from error


def _plain_form(text: str) -> Address:
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def is_public(text: str) -> bool:
    """Whether an address is on the public internet, where any registered URL may lead."""
    address = _plain_form(text)
    if address.version == 6 and address not in GLOBAL_UNICAST_V6:
        return False
    return not _within(address, NOT_PUBLIC)


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


class AddressGuard:
    """Https to public addresses; inside the allowed networks https and plain http."""

    def __init__(self, allowed: tuple[Network, ...]) -> None:
        self.allowed = allowed

    def permits(self, address: str, plain_http: bool) -> bool:
        return _within(_plain_form(address), self.allowed) or (not plain_http and is_public(address))

    async def addresses(self, host: str, port: int, plain_http: bool) -> list[str]:
        """The permitted addresses of `host`; raises BlockedError where there is none, OSError for unknown names."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        known = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        permitted = [address for address in known if self.permits(address, plain_http)]
        if not permitted:
            scheme = "plain http" if plain_http else "https"
            raise BlockedError(
                f"{host} is at {', '.join(known[:3])}, where {scheme} may not go; "
                "use https at a public address, or add the network to LASRO_ALLOWED_NETWORKS"
            )
        return permitted


def check_url(text: str) -> httpx.URL:
    """A reward's URL as far as it can be judged without resolving it; raises BlockedError."""
    try:
        url = httpx.URL(text)
        host, encoded_host = url.host, url.raw_host.decode()
    except (httpx.InvalidURL, ValueError) as error:
        raise BlockedError(f"url: {str(error)[:200]}; expected http(s)://HOST[:PORT]/PATH") from error
    if url.scheme not in ("http", "https") or not host:
        raise BlockedError(f"url: got scheme {url.scheme!r}, expected http(s)://HOST[:PORT]/PATH")
    if HOST.fullmatch(encoded_host) is None:
        raise BlockedError(f"url: got host {host[:80]!r}, expected a name of letters, digits, - and _, or an address")
    if url.port is not None and not 0 < url.port < 65536:
        raise BlockedError(f"url: got port {url.port}, expected http(s)://HOST[:PORT]/PATH")
    if url.userinfo:
        raise BlockedError("url: got a user name or password in it; give `secret` or `headers` instead")
    return url


def check_headers(headers: dict[str, str], secret: str | None) -> None:
    """Refuse headers that would break the request or change its meaning; raises ConfigError."""
    for name, value in headers.items():
        if HEADER_NAME.fullmatch(name) is None or name.lower() in OWN_HEADERS:
            raise ConfigError(f"headers: {name[:64]!r} cannot be set; leave out {', '.join(OWN_HEADERS)}")
        if HEADER_VALUE.fullmatch(value) is None:
            raise ConfigError(f"headers: the value of {name} is not printable ASCII of at most 4096 characters")
    if secret is not None and HEADER_VALUE.fullmatch(secret) is None:
        raise ConfigError("secret: expected printable ASCII")


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections to permitted addresses only. One per endpoint, since `plain_http` is fixed."""

    def __init__(self, guard: AddressGuard, plain_http: bool) -> None:
        self._guard, self._plain_http = guard, plain_http
        tls: httpcore.AsyncNetworkBackend = httpcore.AnyIOBackend()  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]
        self._connect: Connect = connect if plain_http else tls.connect_tcp

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._guard.addresses(host, port, self._plain_http)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"the name {host[:100]} cannot be resolved") from error
        for address in addresses[:-1]:
            try:
                return await self._connect(address, port, timeout)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._connect(addresses[-1], port, timeout)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise BlockedError(f"unix socket {path}: rewards are reached by TCP only")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
