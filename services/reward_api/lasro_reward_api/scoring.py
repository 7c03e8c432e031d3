"""Scoring images by registered rewards: what is cached is reused, the rest goes to the endpoints in batches.

Items stay in request order whatever the endpoints do, and every failure becomes a status, never a number.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx

from lasro import wire
from lasro.errors import BlockedError, ConfigError
from lasro.redis_store.registry import Registration, RewardRegistry
from lasro.wire import RewardScore, Status
from lasro_reward_api.addresses import AddressGuard, parse_networks
from lasro_reward_api.cache import ScoreCache, content_digests, score_digest
from lasro_reward_api.checks import check_images
from lasro_reward_api.outbound import Endpoint, Outcome
from lasro_reward_api.protocols import images_per_call
from lasro_reward_api.protocols.speaker import Answer, Batch, Rejected
from lasro_reward_api.settings import RewardApiSettings

MAX_OPEN = 256
Spend = Callable[[int], Awaitable[None]]
"""Told how many images are about to be scored by a reward; raises BudgetError to forbid it."""


class Endpoints:
    """Open endpoints by reward name and version."""

    def __init__(self, settings: RewardApiSettings) -> None:
        self._settings = settings
        self._guard = AddressGuard(parse_networks(settings.allowed_networks))
        self._tls: ssl.SSLContext = httpx.create_ssl_context()
        self._open: dict[tuple[str, int, str], Endpoint] = {}

    def get(self, registration: Registration) -> Endpoint:
        """The endpoint of exactly this version, opened if need be; raises ConfigError or BlockedError."""
        # The spec too: a Redis that lost its last second gives a version out again.
        key = (registration.spec.name, registration.version, registration.spec.model_dump_json())
        endpoint = self._open.pop(key, None) or Endpoint(registration, self._settings, self._guard, self._tls)
        self._open[key] = endpoint  # last: most recently used
        return endpoint

    async def tidy(self) -> None:
        """Close what has no call in flight and is outdated, or was not used for longest among too many."""
        newest: dict[str, int] = {}
        for name, version, _ in self._open:
            newest[name] = max(version, newest.get(name, 0))
        crowd = list(self._open)[: max(0, len(self._open) - MAX_OPEN)]
        for key in [key for key in self._open if key[1] < newest[key[0]] or key in crowd]:
            if self._open[key].idle:
                await self._open.pop(key).aclose()

    async def aclose(self) -> None:
        for endpoint in self._open.values():
            await endpoint.aclose()


@dataclass(frozen=True)
class _Column:
    """One reward of a request: its cached scores, and what of the items is missing."""

    registration: Registration
    digests: list[str]
    cached: list[float | None]

    @property
    def missing(self) -> list[int]:
        return [index for index, score in enumerate(self.cached) if score is None]

    @property
    def calls(self) -> int:
        return len(self.missing) * self.registration.spec.repeats


class Scorer:
    """Scores requests; one per process."""

    def __init__(
        self, registry: RewardRegistry, endpoints: Endpoints, cache: ScoreCache, settings: RewardApiSettings
    ) -> None:
        self.registry, self.endpoints = registry, endpoints
        self._cache, self._settings = cache, settings

    async def score(self, request: wire.ScoreRequest, spend: Spend | None = None) -> wire.ScoreReply:
        """Score every image by every reward named.

        Raises NotFoundError for a reward that is not registered and WireError for a bad image, before any endpoint
        is called; whatever `spend` raises; UnreachableError or StorageError for Redis.
        """
        registrations = await self.registry.get_many(list(dict.fromkeys(request.rewards)))
        digests = await asyncio.to_thread(content_digests, request)
        columns = [await self._look_up(registration, digests) for registration in registrations]
        wanted = sorted({index for column in columns for index in column.missing})
        images = [(index, request.images[index]) for index in wanted]
        await asyncio.to_thread(check_images, images, self._settings.max_pixels)
        if spend is not None and (calls := sum(column.calls for column in columns)):
            await spend(calls)
        scored = await asyncio.gather(*(self._fill(column, request) for column in columns))
        await self.endpoints.tidy()
        return _assembled(request, {c.registration.spec.name: s for c, s in zip(columns, scored, strict=True)})

    async def probe(self, registration: Registration, batch: Batch) -> Outcome:
        """One call, once, past the cache."""
        outcome = await self.endpoints.get(registration).call(batch, max_attempts=1)
        await self.endpoints.tidy()
        return outcome

    async def _look_up(self, registration: Registration, contents: list[bytes]) -> _Column:
        if not registration.spec.cache:
            return _Column(registration, [], [None] * len(contents))
        digests = [score_digest(content, registration) for content in contents]
        return _Column(registration, digests, await self._cache.look_up(digests))

    async def _fill(self, column: _Column, request: wire.ScoreRequest) -> list[RewardScore]:
        spec, version = column.registration
        results = [
            RewardScore(score=score, status=Status.OK, attempts=0, version=version)
            if score is not None
            else RewardScore(score=None, status=Status.UNAVAILABLE, error="not scored", version=version)
            for score in column.cached
        ]
        missing, size = column.missing, images_per_call(spec)
        chunks = [missing[start : start + size] for start in range(0, len(missing), size)]
        scored = await asyncio.gather(*(self._chunk(column.registration, chunk, request) for chunk in chunks))
        for chunk, scores in zip(chunks, scored, strict=True):
            for index, score in zip(chunk, scores, strict=True):
                results[index] = score
        if column.digests:
            fresh = {column.digests[i]: s for i in missing if (s := results[i].score) is not None}
            await self._cache.keep(fresh)
        return results

    async def _chunk(
        self, registration: Registration, indices: list[int], request: wire.ScoreRequest
    ) -> list[RewardScore]:
        metadata = request.metadata or [None] * len(request.images)
        batch = Batch(
            [request.prompts[i] for i in indices],
            [request.images[i] for i in indices],
            [metadata[i] for i in indices],
        )
        try:
            endpoint = self.endpoints.get(registration)
        except (ConfigError, BlockedError) as error:
            # Registered through an API that allows more than this process does.
            return [_failed(Outcome(Status.UNAVAILABLE, error=str(error), attempts=0), registration)] * len(indices)
        outcomes = await asyncio.gather(*(endpoint.call(batch) for _ in range(registration.spec.repeats)))
        return [averaged(outcomes, index, registration) for index in range(len(indices))]


def averaged(outcomes: list[Outcome], index: int, registration: Registration) -> RewardScore:
    """The mean over repeated calls for one item of a batch; the first failure where any of them failed."""
    spec, version = registration
    answers: list[float] = []
    for outcome in outcomes:
        if outcome.answers is None:
            return _failed(outcome, registration)
        refusal = _refusal(outcome.answers[index], spec)
        if refusal is not None:
            status, error = refusal
            return _failed(Outcome(status, None, error, outcome.attempts, outcome.latency_s), registration)
        answers.append(float(outcome.answers[index]))  # pyright: ignore[reportArgumentType]
    return RewardScore(
        score=math.fsum(answer / len(answers) for answer in answers),
        status=Status.OK,
        attempts=sum(outcome.attempts for outcome in outcomes),
        latency_s=max(outcome.latency_s for outcome in outcomes),
        version=version,
    )


def _refusal(answer: Answer, spec: wire.RewardSpec) -> tuple[Status, str] | None:
    if isinstance(answer, Rejected):
        return Status.REJECTED, answer.reason
    if spec.range is not None and not spec.range[0] <= answer <= spec.range[1]:
        return Status.BAD_REPLY, f"got {answer}, expected a score in {list(spec.range)}"
    return None


def _failed(outcome: Outcome, registration: Registration) -> RewardScore:
    return RewardScore(
        score=None,
        status=outcome.status,
        error=outcome.error,
        attempts=outcome.attempts,
        latency_s=outcome.latency_s,
        version=registration.version,
    )


def _assembled(request: wire.ScoreRequest, columns: dict[str, list[RewardScore]]) -> wire.ScoreReply:
    weights = dict.fromkeys(request.rewards, 1.0) if request.objective is None else request.objective
    items = []
    for index in range(len(request.images)):
        scores = {name: column[index] for name, column in columns.items()}
        items.append(wire.ScoredItem(scores=scores, total=weighted_total(scores, weights)))
    return wire.ScoreReply(items=items)


def weighted_total(scores: dict[str, RewardScore], weights: dict[str, float]) -> float | None:
    """Weighted sum; null when a component is missing or the sum is no finite number."""
    parts = [(weight, scores[name].score) for name, weight in weights.items()]
    if any(score is None for _, score in parts):
        return None
    total = sum(weight * score for weight, score in parts if score is not None)
    return total if math.isfinite(total) else None
