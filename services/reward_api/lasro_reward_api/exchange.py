"""One HTTP exchange with a reward endpoint: guarded, bounded in time and size, and never raising for what it does."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httpx

from lasro import wire
from lasro.errors import AuthError, BlockedError, WireError
from lasro.signing import is_signing_secret, new_message_id, reply_id, signed_headers, signing_key, verify
from lasro.wire import Status
from lasro_reward_api.addresses import AddressGuard, GuardedBackend, GuardedTransport, check_url
from lasro_reward_api.breaker import Verdict
from lasro_reward_api.protocols.speaker import Answer, Parts
from lasro_reward_api.retries import is_retried, retry_after_s

Decode = Callable[[str, bytes], list[Answer]]
LONGEST_ERROR = 300
FAIR_SHARE = 0.5
"""Of its own timeout, that an endpoint must have had before silence counts against it."""
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


class Connection:
    """The HTTP client of one version of a reward; one each, since a pool knows no TLS names."""

    def __init__(self, spec: wire.RewardSpec, max_reply_bytes: int, guard: AddressGuard, tls: ssl.SSLContext) -> None:
        self._spec, self._max_reply_bytes = spec, max_reply_bytes
        self._url = check_url(spec.url)
        self._key = signing_key(spec.secret) if spec.secret and is_signing_secret(spec.secret) else None
        backend = GuardedBackend(guard, plain_http=self._url.scheme == "http")
        self._http = httpx.AsyncClient(
            transport=GuardedTransport(backend, tls, spec.concurrency),
            timeout=spec.timeout_s,
            trust_env=False,
            follow_redirects=False,
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    async def attempt(
        self, parts: Parts, decode: Decode, timeout_s: float, extra: Mapping[str, str]
    ) -> list[Answer] | Failed:
        """Post once and read the answers; `timeout_s` is what the caller has left, `extra` are headers."""
        limit_s = min(timeout_s, self._spec.timeout_s)
        # Of a call that its caller cut short by much nobody can say that the endpoint failed.
        verdict = Verdict.FAILED if limit_s >= FAIR_SHARE * self._spec.timeout_s else Verdict.NOTHING
        try:
            async with asyncio.timeout(limit_s):
                return await self._exchange(parts, decode, extra)
        except BlockedError as error:
            return Failed(Status.BLOCKED, str(error), Verdict.NOTHING)
        except WireError as error:
            return Failed(Status.BAD_REPLY, self.redacted(str(error)), divisible=True)
        except httpx.ConnectTimeout:
            return Failed(Status.UNREACHABLE, f"no connection within {limit_s:.3g} s", verdict, retried=True)
        except (httpx.TimeoutException, TimeoutError):
            # Not tried again: the scorer is most likely still at work on this batch.
            return Failed(Status.TIMEOUT, f"no reply within {limit_s:.3g} s", verdict)
        except httpx.HTTPError as error:
            text = self.redacted(f"{type(error).__name__}: {error}")
            return Failed(Status.UNREACHABLE, text, Verdict.FAILED, retried=True)

    async def _exchange(self, parts: Parts, decode: Decode, extra: Mapping[str, str]) -> list[Answer] | Failed:
        message_id = new_message_id()
        headers = self._headers(parts, message_id) | dict(extra)
        async with self._http.stream(
            "POST", self._target(parts.path), content=parts.content, headers=headers
        ) as response:
            if response.status_code // 100 != 2:
                return self._refused(response)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise WireError("reply: got a compressed body, expected the identity encoding that was asked for")
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > self._max_reply_bytes:
                    raise WireError(f"reply: more than {self._max_reply_bytes} bytes")
        if self._spec.signed_replies:
            self._check_reply(response.headers, bytes(body), message_id)
        return decode(response.headers.get("content-type", ""), bytes(body))

    def _target(self, path: str) -> httpx.URL:
        if self._url.path.endswith(path):
            return self._url
        return self._url.copy_with(path=self._url.path.rstrip("/") + path)

    def _headers(self, parts: Parts, message_id: str) -> dict[str, str]:
        """Each attempt is a message of its own: an endpoint that lets an id in once would refuse the next."""
        if self._key is not None:
            own = signed_headers(self._key, message_id, parts.content)
        else:
            own = {"Authorization": f"Bearer {self._spec.secret}"} if self._spec.secret else {}
        return own | self._spec.headers | parts.headers | {"Accept-Encoding": "identity"}

    def _check_reply(self, headers: httpx.Headers, body: bytes, message_id: str) -> None:
        assert self._key is not None, "registration wants a whsec_ secret for signed replies"
        try:
            answered = verify(self._key, headers, body)
        except AuthError as error:
            raise WireError(f"reply: {error}") from error
        if answered != reply_id(message_id):
            raise WireError("reply: signed as the answer to another call")

    def _refused(self, response: httpx.Response) -> Failed:
        status = response.status_code
        if status // 100 == 3:
            return Failed(Status.HTTP_ERROR, f"HTTP {status}: redirects are not followed; register the final URL")
        return Failed(
            Status.HTTP_ERROR,
            self.redacted(f"HTTP {status} {response.reason_phrase}".strip()),
            Verdict.FAILED if status // 100 == 5 else Verdict.ANSWERED,
            is_retried(status),
            retry_after_s(response.headers.get("retry-after", "")),
            divisible=status // 100 == 4 and status not in INDIVISIBLE,
        )

    def redacted(self, text: str) -> str:
        """What an endpoint says, without the secrets that it was sent: scores are read by others than its owner."""
        values = [value for value in self._spec.headers.values() if len(value) >= SHORTEST_SECRET]
        secrets = [self._spec.secret, *values] if self._spec.secret else values
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, "[redacted]")
        return text[:LONGEST_ERROR]
