"""Scoring images by registered rewards: what is cached is reused, the rest goes to the endpoints in batches.

Items stay in request order whatever the endpoints do, and every failure becomes a status, never a number.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from lasro import wire
from lasro.errors import BlockedError, ConfigError, StorageError, UnreachableError
from lasro.redis_store.registry import Registration, RewardRegistry
from lasro.wire import RewardScore, Status
from lasro_reward_api.admission import Admission
from lasro_reward_api.batching import Item, Outcome, Part
from lasro_reward_api.cache import ScoreCache, content_digests, score_digest
from lasro_reward_api.checks import check_images
from lasro_reward_api.deadline import Caller
from lasro_reward_api.endpoints import Endpoints
from lasro_reward_api.protocols.speaker import Rejected

Spend = Callable[[int], Awaitable[None]]
"""Told how many images are about to be scored by a reward; raises BudgetError to forbid it."""


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
        self,
        registry: RewardRegistry,
        endpoints: Endpoints,
        cache: ScoreCache,
        admission: Admission,
        max_pixels: int,
    ) -> None:
        self.registry, self.admission = registry, admission
        self._endpoints, self._cache, self._max_pixels = endpoints, cache, max_pixels

    async def score(self, request: wire.ScoreRequest, caller: Caller, spend: Spend | None = None) -> wire.ScoreReply:
        """Score a request; with `spend` it is a group, which is never refused for what else there is to do.

        Raises NotFoundError for an unknown reward, WireError for images or metadata that no endpoint should get,
        QueueFullError and BusyError, what `spend` raises, and UnreachableError or StorageError for Redis.
        """
        registrations = await self.registry.get_many(list(dict.fromkeys(request.rewards)))
        digests = await asyncio.to_thread(content_digests, request)
        columns = [await self._look_up(registration, digests) for registration in registrations]
        wanted = sorted({index for column in columns for index in column.missing})
        images = [(index, request.images[index]) for index in wanted]
        await asyncio.to_thread(check_images, images, self._max_pixels)
        counts = {column.registration.spec.name: column.calls for column in columns}
        with self.admission.items(counts, refuse=spend is None):
            if spend is not None and (calls := sum(counts.values())):
                await spend(calls)
            scored = await asyncio.gather(*(self._fill(column, request, caller) for column in columns))
        await self._endpoints.tidy()
        return _assembled(request, {c.registration.spec.name: s for c, s in zip(columns, scored, strict=True)})

    async def probe(self, registration: Registration, item: Item, caller: Caller) -> RewardScore:
        """One call, once, past the cache, the queue and an open circuit. Raises ConfigError, BlockedError."""
        outcome = await self._endpoints.get(registration).probe(item, caller)
        await self._endpoints.tidy()
        return averaged([Part(outcome, 0)], registration)

    async def _look_up(self, registration: Registration, contents: list[bytes]) -> _Column:
        if not registration.spec.cache:
            return _Column(registration, [], [None] * len(contents))
        digests = [score_digest(content, registration) for content in contents]
        return _Column(registration, digests, await self._cache.look_up(digests))

    async def _fill(self, column: _Column, request: wire.ScoreRequest, caller: Caller) -> list[RewardScore]:
        missing = column.missing
        fresh = await self._fresh(column.registration, missing, request, caller) if missing else []
        if column.digests:
            known = zip(missing, fresh, strict=True)
            with suppress(UnreachableError, StorageError):  # a full cache costs calls later, not these scores
                await self._cache.keep({column.digests[i]: s.score for i, s in known if s.score is not None})
        answers = iter(fresh)
        spec, version = column.registration
        scores = [
            next(answers) if score is None else RewardScore(score=score, status=Status.OK, attempts=0, version=version)
            for score in column.cached
        ]
        self._endpoints.metrics.scored(spec.name, scores, cache_hits=len(scores) - len(missing))
        return scores

    async def _fresh(
        self, registration: Registration, indices: list[int], request: wire.ScoreRequest, caller: Caller
    ) -> list[RewardScore]:
        metadata = request.metadata or [None] * len(request.images)
        items = [Item(request.prompts[i], request.images[i], metadata[i]) for i in indices]
        try:
            endpoint = self._endpoints.get(registration)
        except (ConfigError, BlockedError) as error:
            # Registered through an API that allows more than this process does.
            return [_failed(Outcome(Status.UNAVAILABLE, error=str(error), attempts=0), registration)] * len(indices)
        return [averaged(parts, registration) for parts in await endpoint.score(items, caller)]


def averaged(parts: list[Part], registration: Registration) -> RewardScore:
    """The mean over repeated calls for one item; the first failure where any of them failed."""
    spec, version = registration
    answers: list[float] = []
    for outcome, place in parts:
        if outcome.answers is None:
            return _failed(outcome, registration)
        answer = outcome.answers[place]
        if isinstance(answer, Rejected):
            return _failed(replace(outcome, status=Status.REJECTED, error=answer.reason), registration)
        if spec.range is not None and not spec.range[0] <= answer <= spec.range[1]:
            error = f"got {answer}, expected a score in {list(spec.range)}"
            return _failed(replace(outcome, status=Status.BAD_REPLY, error=error), registration)
        answers.append(answer)
    return RewardScore(
        score=math.fsum(answer / len(answers) for answer in answers),
        status=Status.OK,
        attempts=sum(part.outcome.attempts for part in parts),
        latency_s=max(part.outcome.latency_s for part in parts),
        version=version,
    )


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
