"""One HTTP exchange with a reward endpoint: guarded, bounded in time and size, and never raising for what it does."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpcore
import httpx

from lasro import wire
from lasro.errors import AuthError, BlockedError, WireError
from lasro.service.signing import is_signing_secret, new_message_id, reply_id, signed_headers, signing_key, verify
from lasro.wire import Status
from lasro_reward_api.endpoints.address_guard import AddressGuard, GuardedBackend, check_url
from lasro_reward_api.endpoints.circuit_breaker import Verdict
from lasro_reward_api.endpoints.retries import is_retried, retry_after_s
from lasro_reward_api.protocols.base import HttpRequest, ItemResult

Decode = Callable[[str, bytes], list[ItemResult]]
LONGEST_ERROR = 300
IDLE_S = 30.0
"""How long a connection is kept for the next call."""
FAIR_SHARE = 0.5
"""Of its own timeout, that an endpoint must have had before silence counts against it."""
USER_AGENT = "lasro-reward-api"
SHORTEST_SECRET = 6
"""Header values below it, such as a version number, are no secrets."""
INDIVISIBLE = (401, 403, 404, 405, 408, 410, 429)
"""Refusals that have nothing to do with the images sent."""


@dataclass(frozen=True)
class Failed:
    """Why an attempt gave no answers, and what follows from it."""

    status: Status
    error: str
    verdict: Verdict = Verdict.ANSWERED
    retried: bool = False
    wait_s: float | None = None
    divisible: bool = False


class Connections:
    """To one version of a reward: as many as calls were in flight, kept open for the next ones.

    httpcore's connections without its pool, which looks through all of them several times a call, and without httpx
    around them: no redirect is followed, no cookie kept, no proxy or netrc file read.
    """

    def __init__(self, spec: wire.RewardSpec, max_reply_bytes: int, guard: AddressGuard, tls: ssl.SSLContext) -> None:
        self._spec, self._max_reply_bytes, self._tls = spec, max_reply_bytes, tls
        self._url = check_url(spec.url)
        self._key = signing_key(spec.secret) if spec.secret and is_signing_secret(spec.secret) else None
        self._headers = self._own_headers()
        self._backend = GuardedBackend(guard, plain_http=self._url.scheme == "http")
        self._idle: list[httpcore.AsyncHTTPConnection] = []

    async def aclose(self) -> None:
        while self._idle:
            await self._idle.pop().aclose()

    async def attempt(
        self, request: HttpRequest, decode: Decode, timeout_s: float, extra: Mapping[str, str]
    ) -> list[ItemResult] | Failed:
        """Post once and read the answers; `timeout_s` is what the caller has left, `extra` are headers."""
        limit_s = min(timeout_s, self._spec.timeout_s)
        # Of a call that its caller cut short by much nobody can say that the endpoint failed.
        verdict = Verdict.FAILED if limit_s >= FAIR_SHARE * self._spec.timeout_s else Verdict.NOTHING
        try:
            async with asyncio.timeout(limit_s):
                return await self._exchange(request, decode, extra)
        except BlockedError as error:
            return Failed(Status.BLOCKED, str(error), Verdict.NOTHING)
        except WireError as error:
            return Failed(Status.BAD_REPLY, self.redacted(str(error)), divisible=True)
        except httpcore.ConnectTimeout:
            return Failed(Status.UNREACHABLE, f"no connection within {limit_s:.3g} s", verdict, retried=True)
        except (httpcore.TimeoutException, TimeoutError):
            # Not tried again: the scorer is most likely still at work on this batch.
            return Failed(Status.TIMEOUT, f"no reply within {limit_s:.3g} s", verdict)
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            text = self.redacted(f"{type(error).__name__}: {error}")
            return Failed(Status.UNREACHABLE, text, Verdict.FAILED, retried=True)

    async def _exchange(
        self, request: HttpRequest, decode: Decode, extra: Mapping[str, str]
    ) -> list[ItemResult] | Failed:
        message_id = new_message_id()
        sent = self._headers | {name.lower(): value for name, value in (*request.headers.items(), *extra.items())}
        if self._key is not None:
            # Each attempt is a message of its own: an endpoint that lets an id in once would refuse the next.
            sent |= signed_headers(self._key, message_id, request.content)
        async with (
            self._connection() as connection,
            connection.stream(
                "POST",
                self._target(request.path),
                headers=list(sent.items()),
                content=request.content,
                extensions={"timeout": {"connect": self._spec.timeout_s}},
            ) as response,
        ):
            headers = httpx.Headers(response.headers)
            if response.status // 100 != 2:
                return self._refused(response, headers)
            body = await self._read(response, headers)
        if self._spec.signed_replies:
            self._check_reply(headers, body, message_id)
        return decode(headers.get("content-type", ""), body)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[httpcore.AsyncHTTPConnection]:
        """One for this call alone, the last used first; afterwards it is kept where another call can go over it."""
        connection = self._idle.pop() if self._idle else self._new()
        while connection.has_expired():
            await connection.aclose()
            connection = self._idle.pop() if self._idle else self._new()
        try:
            yield connection
        finally:
            if connection.is_available() and len(self._idle) < self._spec.concurrency:
                self._idle.append(connection)
            else:
                await connection.aclose()

    def _new(self) -> httpcore.AsyncHTTPConnection:
        return httpcore.AsyncHTTPConnection(
            self._target("").origin, self._tls, keepalive_expiry=IDLE_S, network_backend=self._backend
        )

    async def _read(self, response: httpcore.Response, headers: httpx.Headers) -> bytes:
        """The body as it comes, within its limit; raises WireError."""
        if headers.get("content-encoding", "identity") != "identity":
            raise WireError("reply: got a compressed body, expected the identity encoding that was asked for")
        body = bytearray()
        async for chunk in response.aiter_stream():
            body += chunk
            if len(body) > self._max_reply_bytes:
                raise WireError(f"reply: more than {self._max_reply_bytes} bytes")
        return bytes(body)

    def _target(self, path: str) -> httpcore.URL:
        url = self._url
        if not url.path.endswith(path):
            url = url.copy_with(path=url.path.rstrip("/") + path)
        return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)

    def _own_headers(self) -> dict[str, str]:
        """What each call carries, by names in lower case."""
        own = {"host": self._url.netloc.decode("ascii"), "user-agent": USER_AGENT, "accept-encoding": "identity"}
        if self._spec.secret and self._key is None:
            own["authorization"] = f"Bearer {self._spec.secret}"
        return own | {name.lower(): value for name, value in self._spec.headers.items()}

    def _check_reply(self, headers: httpx.Headers, body: bytes, message_id: str) -> None:
        assert self._key is not None, "registration wants a whsec_ secret for signed replies"
        try:
            answered = verify(self._key, headers, body)
        except AuthError as error:
            raise WireError(f"reply: {error}") from error
        if answered != reply_id(message_id):
            raise WireError("reply: signed as the answer to another call")

    def _refused(self, response: httpcore.Response, headers: httpx.Headers) -> Failed:
        status = response.status
        if status // 100 == 3:
            return Failed(Status.HTTP_ERROR, f"HTTP {status}: redirects are not followed; register the final URL")
        reason = response.extensions["reason_phrase"].decode("ascii", "replace")
        return Failed(
            Status.HTTP_ERROR,
            self.redacted(f"HTTP {status} {reason}".strip()),
            Verdict.FAILED if status // 100 == 5 else Verdict.ANSWERED,
            is_retried(status),
            retry_after_s(headers.get("retry-after", "")),
            divisible=status // 100 == 4 and status not in INDIVISIBLE,
        )

    def redacted(self, text: str) -> str:
        """What an endpoint says, without the secrets that it was sent: scores are read by others than its owner."""
        values = [value for value in self._spec.headers.values() if len(value) >= SHORTEST_SECRET]
        secrets = [self._spec.secret, *values] if self._spec.secret else values
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, "[redacted]")
        return text[:LONGEST_ERROR]
