"""Scoring images by registered rewards: cached scores are reused, the rest goes to the endpoints in batches.

Items stay in request order whatever the endpoints do, and every failure becomes a status, never a number.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import numpy as np

from lasro import wire
from lasro.errors import BlockedError, ConfigError, NotFoundError, StorageError, UnreachableError
from lasro.functional.reward_totals import totals
from lasro.redis_store.registry import Registration, RewardRegistry
from lasro.wire import ScoreFields, Status
from lasro_reward_api.admission import Admission
from lasro_reward_api.cache import Known, ScoreCache, content_digests
from lasro_reward_api.checks import ImageChecker, are_small_pngs, is_small
from lasro_reward_api.deadline import Caller
from lasro_reward_api.endpoints.batching import CallOutcome, Item, ItemOutcome
from lasro_reward_api.endpoints.pool import EndpointPool
from lasro_reward_api.protocols.base import Rejected

Spend = Callable[[int], Awaitable[None]]
"""Called with the number of images that are about to be scored; raises BudgetError to forbid it."""


class _Column:
    """One reward of a request: its cached scores, and the items without one."""

    def __init__(self, known: Known, digests: list[bytes]) -> None:
        self.registration, self.cached = known
        self.digests = digests
        self.missing = [index for index, score in enumerate(self.cached) if score is None]

    @property
    def calls(self) -> int:
        return len(self.missing) * self.registration.spec.repeats

    def filled(self, fresh: list[ScoreFields]) -> list[ScoreFields]:
        """The column with `fresh` scores, as many as are missing, in the gaps."""
        left, version = iter(fresh), self.registration.version
        return [next(left) if known is None else _ok(known, 0, 0.0, version) for known in self.cached]


class Scorer:
    """Scores requests; one per process."""

    def __init__(
        self,
        registry: RewardRegistry,
        endpoints: EndpointPool,
        cache: ScoreCache,
        admission: Admission,
        max_pixels: int,
    ) -> None:
        self.registry, self.admission = registry, admission
        self.images = ImageChecker(max_pixels)
        self._endpoints, self._cache = endpoints, cache

    async def score(self, request: wire.ScoreRequest, caller: Caller, spend: Spend | None = None) -> wire.Fields:
        """A wire.ScoreReply for a request. One with `spend` is a group, which is never refused as beyond a limit.

        Raises NotFoundError for an unknown reward, WireError for images or metadata that no endpoint should get and for
        rewards that the objective cannot combine, QueueFullError and BusyError, what `spend` raises, and
        UnreachableError or StorageError for Redis.
        """
        digests = await _digests(request)
        names = list(dict.fromkeys(request.rewards))
        columns = [_Column(known, digests) for known in await self._known(names, digests, request.fresh)]
        incomplete = [column for column in columns if column.missing]
        fresh = await self._fresh(incomplete, request, caller, spend) if incomplete else {}
        entries = dict[str, list[ScoreFields]]()
        for column in columns:
            name = column.registration.spec.name
            scores = fresh.get(name, [])
            entries[name] = column.filled(scores)
            self._endpoints.metrics.scored(name, scores, cache_hits=len(request.images) - len(scores))
        return _assembled(request, entries)

    async def probe(self, registration: Registration, item: Item, caller: Caller) -> ScoreFields:
        """One call, once, past the cache, the queue and an open circuit. Raises ConfigError, BlockedError."""
        outcome = await self._endpoints.get(registration).probe(item, caller)
        await self._endpoints.tidy()
        return averaged([ItemOutcome(outcome, 0)], registration)

    async def _known(self, names: list[str], digests: list[bytes], fresh: bool) -> list[Known]:
        if not fresh:
            with suppress(NotFoundError):  # the registry says more about it
                return await self._cache.look_up(names, digests)
        return [Known(found, [None] * len(digests)) for found in await self.registry.get_many(names)]

    async def _fresh(
        self, columns: list[_Column], request: wire.ScoreRequest, caller: Caller, spend: Spend | None
    ) -> dict[str, list[ScoreFields]]:
        """By reward, the scores that each column misses; those that are numbers are cached."""
        wanted = sorted({index for column in columns for index in column.missing})
        await self._check([(index, request.images[index]) for index in wanted])
        counts = {column.registration.spec.name: column.calls for column in columns}
        with self.admission.items(counts, refuse=spend is None):
            if spend is not None:
                await spend(sum(counts.values()))
            scored = await asyncio.gather(*(self._called(column, request, caller) for column in columns))
        await self._endpoints.tidy()
        return dict(zip(counts, scored, strict=True))

    async def _check(self, images: list[tuple[int, bytes]]) -> None:
        """Raise WireError for the first image that no endpoint should get."""
        if are_small_pngs([image for _, image in images]):
            self.images.check(images)
        else:
            await asyncio.to_thread(self.images.check, images)

    async def _called(self, column: _Column, request: wire.ScoreRequest, caller: Caller) -> list[ScoreFields]:
        metadata = request.metadata or [None] * len(request.images)
        items = [Item(request.prompts[i], request.images[i], metadata[i]) for i in column.missing]
        try:
            endpoint = self._endpoints.get(column.registration)
        except (ConfigError, BlockedError) as error:
            # Registered through an API that allows more than this process does.
            failed = _failed(CallOutcome(Status.UNAVAILABLE, error=str(error), attempts=0), column.registration)
            return [failed] * len(items)
        scores = [averaged(outcomes, column.registration) for outcomes in await endpoint.score(items, caller)]
        if request.fresh:
            return scores
        numbers = {
            column.digests[index]: number
            for index, score in zip(column.missing, scores, strict=True)
            if (number := score["score"]) is not None
        }
        with suppress(UnreachableError, StorageError):  # a full cache costs calls later, not these scores
            await self._cache.keep(column.registration, numbers)
        return scores


async def _digests(request: wire.ScoreRequest) -> list[bytes]:
    if is_small(request.prompts, request.images, request.metadata):
        return content_digests(request)
    return await asyncio.to_thread(content_digests, request)


def averaged(outcomes: list[ItemOutcome], registration: Registration) -> ScoreFields:
    """The mean over repeated calls for one item; the first failure where any of them failed."""
    spec, version = registration
    answers: list[float] = []
    for call, index in outcomes:
        if call.answers is None:
            return _failed(call, registration)
        answer = call.answers[index]
        if isinstance(answer, Rejected):
            return _failed(replace(call, status=Status.REJECTED, error=answer.reason), registration)
        if spec.range is not None and not spec.range[0] <= answer <= spec.range[1]:
            error = f"got {answer}, {wire.OUT_OF_RANGE} {list(spec.range)}"
            return _failed(replace(call, status=Status.BAD_REPLY, error=error), registration)
        answers.append(answer)
    return _ok(
        math.fsum(answer / len(answers) for answer in answers),
        sum(call.attempts for call, _ in outcomes),
        max(call.latency_s for call, _ in outcomes),
        version,
    )


def _ok(score: float, attempts: int, latency_s: float, version: int) -> ScoreFields:
    return {
        "score": score,
        "status": Status.OK,
        "error": None,
        "attempts": attempts,
        "latency_s": latency_s,
        "version": version,
    }


def _failed(outcome: CallOutcome, registration: Registration) -> ScoreFields:
    return {
        "score": None,
        "status": outcome.status,
        "error": outcome.error,
        "attempts": outcome.attempts,
        "latency_s": outcome.latency_s,
        "version": registration.version,
    }


def _assembled(request: wire.ScoreRequest, entries: dict[str, list[ScoreFields]]) -> wire.Fields:
    """A wire.ScoreReply. Raises WireError for rewards that the request's objective cannot combine."""
    rewards = {name: np.array([entry["score"] for entry in column], float) for name, column in entries.items()}
    found = totals(rewards, request.reward_objective)
    items = [
        {
            "scores": {name: column[index] for name, column in entries.items()},
            "total": None if math.isnan(total) else total,
            "vetoed": vetoed,
        }
        for index, (total, vetoed) in enumerate(zip(found.valid_total_N.tolist(), found.vetoed_N.tolist(), strict=True))
    ]
    return {"items": items}
