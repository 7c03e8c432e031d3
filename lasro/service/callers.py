"""Who may ask a service: holders of its API key, or where it has none, programs of this machine.

A page in a browser is no such program. It can reach loopback too, so a service without a key goes by what browsers
say of a page: the name that it found the service by (`Host`, which DNS rebinding cannot change), its own address
(`Origin`) and how both are related (`Sec-Fetch-Site`).
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections.abc import Mapping
from functools import lru_cache

from starlette.responses import Response
from starlette.types import Scope

from lasro.errors import AuthError
from lasro.service.environment import ServiceEnvironment
from lasro.service.problem import CROSS_ORIGIN, MALFORMED_HTTP, problem_response

OPEN_PATHS = ("/health/live", "/health/ready", "/metrics", "/openapi.json")
SINGLE = frozenset(
    (b"host", b"authorization", b"content-type", b"content-length", b"transfer-encoding", b"origin", b"sec-fetch-site")
)
"""Headers of which a second one could be read by one server and the first one by another."""
OWN_SITES = (b"same-origin", b"none")
"""`Sec-Fetch-Site` of the service's own pages, and of an address that the user typed."""
HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9.-]+?)\.?(:[0-9]*)?")


def is_loopback(name: str) -> bool:
    """Whether a host name or address without brackets leads to this machine whoever resolves it."""
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


@lru_cache(256)
def names_loopback(host: bytes) -> bool:
    """Whether a `Host` header is a loopback name or address, with or without a port."""
    match = HOST.fullmatch(host.decode("latin-1").strip().lower())
    return match is not None and is_loopback(match["name"].strip("[]"))


def refusal(scope: Scope, headers: Mapping[bytes, bytes], settings: ServiceEnvironment) -> Response | None:
    """What a caller that may not ask is answered, before its body is read; None for one that may.

    `headers` are the scope's, by lower-case name.
    """
    raw = scope["headers"]
    if len(headers) != len(raw):
        names = [name for name, _ in raw]
        repeated = next((name for name in names if name in SINGLE and names.count(name) > 1), None)
        if repeated is not None:
            return problem_response(MALFORMED_HTTP, f"{repeated.decode()}: got several, expected one")
    if b"host" not in headers and scope["http_version"] == "1.1":
        return problem_response(MALFORMED_HTTP, "host: got none, expected the header Host: HOST[:PORT]")
    if not settings.knows_callers:
        return _cross_origin(headers)
    if settings.api_key is None or scope["path"].removeprefix(settings.root_path) in OPEN_PATHS:
        return None
    if hmac.compare_digest(_bearer(headers.get(b"authorization", b"")), settings.api_key.get_secret_value().encode()):
        return None
    detail = "expected the header 'Authorization: Bearer KEY' with the service's LASRO_API_KEY"
    return problem_response(AuthError, detail, {"WWW-Authenticate": "Bearer"})


def _bearer(authorization: bytes) -> bytes:
    """The key in an `Authorization` header; empty where there is none, which no key is."""
    scheme, _, key = authorization.strip().partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def _cross_origin(headers: Mapping[bytes, bytes]) -> Response | None:
    host, origin, site = headers.get(b"host", b""), headers.get(b"origin"), headers.get(b"sec-fetch-site")
    if not names_loopback(host):
        return _of_a_page("Host", host, "localhost or 127.0.0.1")
    if origin is not None and origin.lower() not in (b"http://" + host.lower(), b"https://" + host.lower()):
        return _of_a_page("Origin", origin, "none or the service's own")
    if site is not None and site.lower() not in OWN_SITES:
        return _of_a_page("Sec-Fetch-Site", site, "none or same-origin")
    return None


def _of_a_page(header: str, value: bytes, expected: str) -> Response:
    got = repr(value[:60].decode("latin-1"))
    detail = f"{header}: got {got}, expected {expected}, for the service has no key; set LASRO_API_KEY to give one"
    return problem_response(CROSS_ORIGIN, detail)
