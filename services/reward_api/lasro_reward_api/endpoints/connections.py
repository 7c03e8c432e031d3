"""HTTP to a reward endpoint: to permitted addresses only, bounded in time and size.

Whatever the endpoint does becomes a FailedAttempt, not an exception.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import httpcore
import httpx

from lasro import wire
from lasro.errors import AuthError, BlockedError, WireError
from lasro.service.error_text import error_of_body
from lasro.service.signing import is_signing_secret, new_message_id, reply_id, signed_headers, signing_key, verify
from lasro.wire import Status
from lasro_reward_api.endpoints.address_guard import AddressGuard, GuardedBackend, check_url
from lasro_reward_api.endpoints.circuit_breaker import Verdict
from lasro_reward_api.endpoints.redaction import Redactor
from lasro_reward_api.endpoints.retries import is_retried, retry_after_s
from lasro_reward_api.protocols.base import HttpRequest, ItemResult

Decode = Callable[[str, bytes], list[ItemResult]]
IDLE_S = 30.0
"""Seconds that an unused connection is kept open."""
FAIR_SHARE = 0.5
"""Share of its own timeout that an endpoint must have had before silence counts as its failure."""
USER_AGENT = "lasro-reward-api"
LONGEST_REASON, REASON_BYTES, REASON_S = 200, 1 << 20, 1.0
"""Of the body of a refusal: letters that are shown, bytes and seconds in which it is read."""
INDIVISIBLE = (401, 403, 404, 405, 408, 409, 410, 425, 429)
"""Statuses 4xx that have nothing to do with the images sent."""


@dataclass(frozen=True)
class FailedAttempt:
    """An attempt without answers: why, and what follows.

    `verdict` is for the circuit breaker. `retried`: it may be made again, after `wait_s` seconds where the endpoint
    asked for that. `divisible`: it may be the fault of one of the images.
    """

    status: Status
    error: str
    verdict: Verdict = Verdict.ANSWERED
    retried: bool = False
    wait_s: float | None = None
    divisible: bool = False


class ConnectionPool:
    """Open connections to one version of a reward, kept for its next calls.

    These are httpcore's connections. Its own pool looks through all of them several times a call, so it is not used.
    Nor is httpx: no redirect is followed, no cookie is kept, no proxy or netrc file is read.
    """

    def __init__(self, spec: wire.RewardSpec, max_reply_bytes: int, guard: AddressGuard, tls: ssl.SSLContext) -> None:
        self._spec, self._max_reply_bytes, self._tls = spec, max_reply_bytes, tls
        self._url = check_url(spec.url)
        self.redacted = Redactor(spec)
        self._key = signing_key(spec.secret) if spec.secret and is_signing_secret(spec.secret) else None
        self._headers = self._own_headers()
        self._backend = GuardedBackend(guard, plain_http=self._url.scheme == "http")
        self._idle: list[httpcore.AsyncHTTPConnection] = []

    async def aclose(self) -> None:
        while self._idle:
            await self._idle.pop().aclose()

    async def attempt(
        self, request: HttpRequest, decode: Decode, timeout_s: float, extra: Mapping[str, str]
    ) -> list[ItemResult] | FailedAttempt:
        """Post once and read the answers. `timeout_s` is what the caller has left, `extra` are more headers."""
        limit_s = min(timeout_s, self._spec.timeout_s)
        # Where the caller cut the call far shorter than the endpoint's own timeout, silence is no failure of it.
        verdict = Verdict.FAILED if limit_s >= FAIR_SHARE * self._spec.timeout_s else Verdict.NOTHING
        try:
            ends_at_s = asyncio.get_running_loop().time() + limit_s
            async with asyncio.timeout_at(ends_at_s):
                return await self._exchange(request, decode, extra, ends_at_s)
        except BlockedError as error:
            return FailedAttempt(Status.BLOCKED, str(error), Verdict.NOTHING)
        except WireError as error:
            return FailedAttempt(Status.BAD_REPLY, self.redacted(str(error)), divisible=True)
        except httpcore.ConnectTimeout:
            return FailedAttempt(Status.UNREACHABLE, f"no connection within {limit_s:.3g} s", verdict, retried=True)
        except (httpcore.TimeoutException, TimeoutError):
            # Not tried again: the scorer is most likely still at work on this batch.
            return FailedAttempt(Status.TIMEOUT, f"no reply within {limit_s:.3g} s", verdict)
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            text = self.redacted(f"{type(error).__name__}: {error}")
            return FailedAttempt(Status.UNREACHABLE, text, Verdict.FAILED, retried=True)

    async def _exchange(
        self, request: HttpRequest, decode: Decode, extra: Mapping[str, str], ends_at_s: float
    ) -> list[ItemResult] | FailedAttempt:
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
                return await self._refused(response, headers, ends_at_s)
            body = await self._read(response, headers)
        if self._spec.signed_replies:
            self._check_reply(headers, body, message_id)
        return decode(headers.get("content-type", ""), body)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[httpcore.AsyncHTTPConnection]:
        """A connection for this call alone, the one used last first; kept afterwards if it can carry another call."""
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
        """The headers of every call, by names in lower case."""
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

    async def _refused(self, response: httpcore.Response, headers: httpx.Headers, ends_at_s: float) -> FailedAttempt:
        status = response.status
        if status // 100 == 3:
            return FailedAttempt(
                Status.HTTP_ERROR, f"HTTP {status}: redirects are not followed; register the final URL"
            )
        phrase = response.extensions["reason_phrase"].decode("ascii", "replace").strip()
        said = f"HTTP {status} {phrase}".strip()
        reason = self.redacted(await self._reason(response, headers, ends_at_s), LONGEST_REASON)
        # The page of a proxy says nothing that the status does not.
        is_news = reason.casefold() not in ("", phrase.casefold(), f"{status} {phrase}".casefold())
        return FailedAttempt(
            Status.HTTP_ERROR,
            self.redacted(f"{said}: {reason}" if is_news else said),
            Verdict.FAILED if status // 100 == 5 else Verdict.ANSWERED,
            is_retried(status),
            retry_after_s(headers.get("retry-after", "")),
            divisible=status // 100 == 4 and status not in INDIVISIBLE,
        )

    async def _reason(self, response: httpcore.Response, headers: httpx.Headers, ends_at_s: float) -> str:
        """The endpoint's own words in a refusal; "" where there are none, or none in time. The status stands anyway."""
        if headers.get("content-encoding", "identity") != "identity":
            return ""
        left_s = ends_at_s - asyncio.get_running_loop().time()
        body = bytearray()
        with suppress(TimeoutError, httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError):
            async with asyncio.timeout(min(REASON_S, left_s / 2)):
                async for chunk in response.aiter_stream():
                    body += chunk
                    if len(body) > min(REASON_BYTES, self._max_reply_bytes):
                        break
        return error_of_body(bytes(body))
