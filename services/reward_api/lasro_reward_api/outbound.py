"""Calling a reward endpoint: one batch in, one answer per image out, or the status that says what went wrong."""

from __future__ import annotations

import asyncio
import email.utils
import random
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx

from lasro.errors import BlockedError, WireError
from lasro.redis_store.registry import Registration
from lasro.wire import Status
from lasro_reward_api.addresses import AddressGuard, GuardedBackend, GuardedTransport, check_url
from lasro_reward_api.protocols import SPEAKERS
from lasro_reward_api.protocols.speaker import Answer, Batch, Parts
from lasro_reward_api.settings import RewardApiSettings

RETRIED_STATUSES = (408, 429, 500, 502, 503, 504)
BACKOFF_S = 0.2
LONGEST_WAIT_S = 10.0


@dataclass(frozen=True)
class Outcome:
    """What one call came to. `answers` is set exactly when `status` is ok, one per image."""

    status: Status
    answers: list[Answer] | None = None
    error: str | None = None
    attempts: int = 1
    latency_s: float = 0.0


@dataclass(frozen=True)
class _Failed:
    status: Status
    error: str
    retried: bool = False
    wait_s: float | None = None


class Endpoint:
    """One version of a registered reward, with its own connections."""

    def __init__(
        self, registration: Registration, settings: RewardApiSettings, guard: AddressGuard, tls: ssl.SSLContext
    ) -> None:
        self.spec, self.version = registration
        self._speaker, self._settings = SPEAKERS[self.spec.protocol], self.spec.mapping or {}
        self._speaker.check(self._settings)
        self._url = check_url(self.spec.url)
        self._max_reply_bytes, self._max_attempts = settings.max_reply_bytes, settings.max_attempts
        self._slots = asyncio.Semaphore(self.spec.concurrency)
        self._in_flight = 0
        backend = GuardedBackend(guard, plain_http=self._url.scheme == "http")
        self._http = httpx.AsyncClient(
            transport=GuardedTransport(backend, tls, self.spec.concurrency),
            timeout=self.spec.timeout_s,
            trust_env=False,
            follow_redirects=False,
        )

    async def aclose(self) -> None:
        await self._http.aclose()

    @property
    def idle(self) -> bool:
        """Whether no call is waiting or under way."""
        return self._in_flight == 0

    async def call(self, batch: Batch, max_attempts: int | None = None) -> Outcome:
        """Post one batch, again where that may help. Never raises for what the endpoint does."""
        self._in_flight += 1
        try:
            return await self._call(batch, max_attempts)
        finally:
            self._in_flight -= 1

    async def _call(self, batch: Batch, max_attempts: int | None) -> Outcome:
        tries = max_attempts or self._max_attempts
        async with self._slots:
            # Not before its turn: a thousand bodies that wait would be gigabytes.
            try:
                parts = await asyncio.to_thread(self._speaker.encode, batch, self._settings)
            except WireError as error:
                return Outcome(Status.REJECTED, error=str(error), attempts=0)
            started, attempt = time.perf_counter(), 0
            while True:
                attempt += 1
                result = await self._attempt(parts, len(batch.images))
                latency_s = time.perf_counter() - started
                if not isinstance(result, _Failed):
                    return Outcome(Status.OK, result, None, attempt, latency_s)
                wait_s = self._wait_s(result, attempt)
                if attempt >= tries or wait_s is None:
                    return Outcome(result.status, None, result.error, attempt, latency_s)
                await asyncio.sleep(wait_s)

    @staticmethod
    def _wait_s(failed: _Failed, attempt: int) -> float | None:
        """Full jitter, or what the endpoint asked for; None where another try would not help."""
        if not failed.retried:
            return None
        if failed.wait_s is not None:
            return failed.wait_s if failed.wait_s <= LONGEST_WAIT_S else None
        return random.uniform(0, min(LONGEST_WAIT_S, BACKOFF_S * 2**attempt))

    async def _attempt(self, parts: Parts, count: int) -> list[Answer] | _Failed:
        timeout_s = self.spec.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self._exchange(parts, count)
        except BlockedError as error:
            return _Failed(Status.BLOCKED, str(error))
        except WireError as error:
            return _Failed(Status.BAD_REPLY, str(error))
        except httpx.ConnectTimeout:
            return _Failed(Status.UNREACHABLE, f"no connection within {timeout_s} s", retried=True)
        except (httpx.TimeoutException, TimeoutError):
            # Not tried again: the scorer is most likely still at work on this batch.
            return _Failed(Status.TIMEOUT, f"no reply within {timeout_s} s")
        except httpx.HTTPError as error:
            return _Failed(Status.UNREACHABLE, f"{type(error).__name__}: {error}"[:300], retried=True)

    async def _exchange(self, parts: Parts, count: int) -> list[Answer] | _Failed:
        async with self._http.stream(
            "POST", self._target(parts.path), content=parts.content, headers=self._headers(parts)
        ) as response:
            if response.status_code // 100 != 2:
                return _refused(response)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise WireError("reply: got a compressed body, expected the identity encoding that was asked for")
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > self._max_reply_bytes:
                    raise WireError(f"reply: more than {self._max_reply_bytes} bytes")
        content_type = response.headers.get("content-type", "")
        return self._speaker.decode(content_type, bytes(body), count, self._settings)

    def _target(self, path: str) -> httpx.URL:
        if self._url.path.endswith(path):
            return self._url
        return self._url.copy_with(path=self._url.path.rstrip("/") + path)

    def _headers(self, parts: Parts) -> dict[str, str]:
        own = {"Authorization": f"Bearer {self.spec.secret}"} if self.spec.secret else {}
        return own | self.spec.headers | parts.headers | {"Accept-Encoding": "identity"}


def _refused(response: httpx.Response) -> _Failed:
    status = response.status_code
    if status // 100 == 3:
        return _Failed(Status.HTTP_ERROR, f"HTTP {status}: redirects are not followed; register the final URL")
    retried = status in RETRIED_STATUSES
    wait_s = _retry_after_s(response.headers.get("retry-after", "")) if retried else None
    return _Failed(Status.HTTP_ERROR, f"HTTP {status} {response.reason_phrase}".strip(), retried, wait_s)


def _retry_after_s(value: str) -> float | None:
    """Seconds of a Retry-After header in either of its forms; None where there is none to understand."""
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
        return max(0.0, (moment - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
