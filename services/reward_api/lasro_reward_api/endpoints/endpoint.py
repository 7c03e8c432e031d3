"""Scoring by one reward endpoint: batches, retries and a circuit breaker.

Every image gets an outcome. What the endpoint does never becomes an exception.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from lasro.errors import WireError
from lasro.redis_store.registry import Registration
from lasro.service.logs import REQUEST_ID_HEADER, new_request_id, set_request_id
from lasro.wire import TIMEOUT_HEADER, Status
from lasro_reward_api.checks import is_small
from lasro_reward_api.deadline import Caller, Deadline, latest
from lasro_reward_api.endpoints.address_guard import AddressGuard
from lasro_reward_api.endpoints.batching import Batcher, CallOutcome, Item, ItemOutcome
from lasro_reward_api.endpoints.circuit_breaker import CircuitBreaker, CircuitState, Verdict
from lasro_reward_api.endpoints.connections import ConnectionPool, FailedAttempt
from lasro_reward_api.endpoints.retries import pause_s
from lasro_reward_api.metrics import RewardMetrics
from lasro_reward_api.protocols import CODECS, images_per_call
from lasro_reward_api.protocols.base import Batch, HttpRequest, ItemResult, Rejected
from lasro_reward_api.settings import RewardApiSettings

log = logging.getLogger("lasro.reward_api")


class Endpoint:
    """One version of a registered reward, with its own connections."""

    def __init__(
        self,
        registration: Registration,
        settings: RewardApiSettings,
        guard: AddressGuard,
        tls: ssl.SSLContext,
        metrics: RewardMetrics,
    ) -> None:
        self.spec, self.version = registration
        self._codec, self._registered = CODECS[self.spec.protocol], self.spec.mapping or {}
        self._settings = self._registered
        self._codec.check(self._settings)
        self._connections = ConnectionPool(self.spec, settings.max_reply_bytes, guard, tls)
        self._max_attempts = settings.max_attempts
        self._slots = asyncio.Semaphore(self.spec.concurrency)
        self.breaker = CircuitBreaker(settings.circuit_failures, settings.circuit_open_s)
        self._metrics = metrics
        metrics.opened(self.spec.name, self.breaker)
        # One queue per repeat: an image that is to be scored three times is so in three calls.
        self._batchers = [
            Batcher(
                self._send,
                self._prepared,
                self._slots,
                images_per_call(self.spec),
                settings.batch_wait_s,
                shared=self.spec.repeats > 1,
            )
            for _ in range(self.spec.repeats)
        ]
        self._in_flight = 0

    async def aclose(self) -> None:
        for batcher in self._batchers:
            await batcher.aclose()
        await self._connections.aclose()

    @property
    def idle(self) -> bool:
        """Whether nothing waits or is in flight."""
        return self._in_flight == 0 and all(batcher.idle for batcher in self._batchers)

    async def score(self, items: Sequence[Item], caller: Caller) -> list[list[ItemOutcome]]:
        """Per item its outcome in each of the repeated calls."""
        self._in_flight += 1
        try:
            columns = await asyncio.gather(*(batcher.score(items, caller) for batcher in self._batchers))
        finally:
            self._in_flight -= 1
        return [list(row) for row in zip(*columns, strict=True)]

    async def probe(self, item: Item, caller: Caller) -> CallOutcome:
        """One call with one attempt, past the queue and an open circuit, which counts its outcome all the same."""
        self._in_flight += 1
        try:
            batch = Batch([item.prompt], [item.image], [item.metadata])
            return await self._call(batch, caller.deadline, caller.request_id, is_probe=True)
        finally:
            self._in_flight -= 1

    async def _send(self, batch: Batch, callers: Sequence[Caller]) -> CallOutcome:
        deadline = latest(caller.deadline for caller in callers)
        if len(callers) == 1:
            return await self._call(batch, deadline, callers[0].request_id)
        shared_id = new_request_id()
        ids = [caller.request_id for caller in callers]
        log.debug("call %s of reward %s serves the requests %s", shared_id, self.spec.name, ", ".join(ids))
        return await self._call(batch, deadline, shared_id)

    async def _call(self, batch: Batch, deadline: Deadline, request_id: str, is_probe: bool = False) -> CallOutcome:
        set_request_id(request_id)
        try:
            request = await self._encoded(batch)
        except WireError as error:
            return CallOutcome(Status.REJECTED, error=str(error), attempts=0, divisible=True)
        reason = None if is_probe else self.breaker.refusal()
        if reason is not None:
            return CallOutcome(Status.UNAVAILABLE, error=reason, attempts=0)
        max_attempts = 1 if is_probe or self.breaker.state is CircuitState.HALF_OPEN else self._max_attempts
        call, verdict, error = self.breaker.start(), Verdict.NOTHING, ""
        started_s = time.perf_counter()
        try:
            result, attempts = await self._adapted_attempts(batch, request, deadline, request_id, max_attempts)
            if isinstance(result, FailedAttempt):
                verdict, error = result.verdict, result.error
            else:
                verdict = Verdict.ANSWERED
        finally:
            self.breaker.finish(call, verdict, error)
        latency_s = time.perf_counter() - started_s
        self._metrics.called(self.spec.name, latency_s)
        if isinstance(result, FailedAttempt):
            log.warning(
                "reward %s: %s after %d attempts (%s)", self.spec.name, result.status.value, attempts, result.error
            )
            return CallOutcome(result.status, None, result.error, attempts, latency_s, result.divisible)
        return CallOutcome(Status.OK, [self._redacted(answer) for answer in result], None, attempts, latency_s)

    def _prepared(self, batch: Batch) -> Batch:
        """The batch with its request encoded ahead of its turn, where it is small.

        A batch that the protocol cannot carry is returned as it is: `_call` encodes it again and reports why.
        """
        if is_small(batch.prompts, batch.images, batch.metadata):
            with suppress(WireError):
                return replace(batch, request=self._codec.encode(batch, self._settings))
        return batch

    async def _encoded(self, batch: Batch) -> HttpRequest:
        """The request for a batch; raises WireError for one that the protocol cannot carry."""
        if batch.request is not None:
            return batch.request
        if is_small(batch.prompts, batch.images, batch.metadata):
            return self._codec.encode(batch, self._settings)
        return await asyncio.to_thread(self._codec.encode, batch, self._settings)

    async def _adapted_attempts(
        self, batch: Batch, request: HttpRequest, deadline: Deadline, request_id: str, max_attempts: int
    ) -> tuple[list[ItemResult] | FailedAttempt, int]:
        """As `_attempts`; asks otherwise, from then on too, where a refusal says what the endpoint does not take."""
        total = 0
        while True:
            result, attempts = await self._attempts(request, len(batch.images), deadline, request_id, max_attempts)
            total += attempts
            # `divisible`: refused for what was sent.
            if not isinstance(result, FailedAttempt) or result.status is not Status.HTTP_ERROR or not result.divisible:
                return result, total
            if learned := self._codec.adapted(self._settings, result.error):
                log.info("reward %s: asked otherwise from now on (%s)", self.spec.name, result.error)
                self._settings = learned
            # What another call has learned in the meantime counts too.
            if self._settings is self._registered:
                return result, total
            again = await self._encoded(replace(batch, request=None))
            if again.content == request.content:
                return result, total
            request = again

    async def _attempts(
        self, request: HttpRequest, count: int, deadline: Deadline, request_id: str, max_attempts: int
    ) -> tuple[list[ItemResult] | FailedAttempt, int]:
        """The result of the last attempt, and how many were made."""

        def decode(content_type: str, body: bytes) -> list[ItemResult]:
            return self._codec.decode(content_type, body, count, self._settings)

        for attempt in range(1, max_attempts + 1):
            left_s = deadline.left_s()
            extra = {TIMEOUT_HEADER: f"{min(left_s, self.spec.timeout_s):.3f}", REQUEST_ID_HEADER: request_id}
            result = await self._connections.attempt(request, decode, left_s, extra)
            if not isinstance(result, FailedAttempt) or not result.retried or attempt == max_attempts:
                return result, attempt
            wait_s = pause_s(attempt, result.wait_s, deadline.left_s())
            if wait_s is None:
                return result, attempt
            await asyncio.sleep(wait_s)
        raise AssertionError("max_attempts is at least 1")

    def _redacted(self, answer: ItemResult) -> ItemResult:
        if isinstance(answer, Rejected):
            return replace(answer, reason=self._connections.redacted(answer.reason))
        return answer
