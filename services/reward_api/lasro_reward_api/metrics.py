"""Prometheus metrics of each reward.

Only names that are registered become labels, and a reward that is deleted takes its series with it: nobody can make
series by asking for rewards that do not exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from lasro.wire import ScoreFields, Status
from lasro_reward_api.endpoints.circuit_breaker import CircuitBreaker

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class RewardMetrics:
    """All metrics have the label `reward`. An image counts once for each request that asks for its score."""

    def __init__(self, registry: CollectorRegistry) -> None:
        by = ["reward"]
        self._requests = Counter("lasro_reward_requests", "Images to be scored", by, registry=registry)
        self._hits = Counter("lasro_reward_cache_hits", "Images whose score was known", by, registry=registry)
        self._failures = Counter("lasro_reward_failures", "Images unscored", [*by, "cause"], registry=registry)
        self._seconds = Histogram(
            "lasro_reward_call_seconds", "Time of a call, retries included", by, registry=registry, buckets=SECONDS
        )
        self._queue = Gauge("lasro_reward_queue_size", "Images waiting or in flight", by, registry=registry)
        self._circuit = Gauge(
            "lasro_reward_circuit_state", "0 closed, 1 half-open, 2 open: left alone", by, registry=registry
        )
        self._names: set[str] = set()
        # Prometheus' client takes longer to find a series than to count.
        self._requests_of, self._hits_of = lru_cache(1024)(self._requests.labels), lru_cache(1024)(self._hits.labels)

    @property
    def names(self) -> set[str]:
        """The rewards that have series."""
        return set(self._names)

    def opened(self, name: str, breaker: CircuitBreaker) -> None:
        """Show `breaker` as the circuit of the reward from now on."""
        self._names.add(name)
        # All series exist from the start, at 0: Prometheus cannot take a rate of a series' first value.
        for counter in (self._requests, self._hits):
            counter.labels(name)
        for cause in set(Status) - {Status.OK}:
            self._failures.labels(name, cause.value)
        # Read at each scrape: a circuit turns half-open when its time is over, without any call.
        self._circuit.labels(name).set_function(lambda: float(breaker.state))

    def called(self, name: str, seconds: float) -> None:
        self._names.add(name)
        self._seconds.labels(name).observe(seconds)

    def queued(self, name: str, images: int) -> None:
        self._names.add(name)
        self._queue.labels(name).set(images)

    def scored(self, name: str, scores: Sequence[ScoreFields], cache_hits: int) -> None:
        """Count one request: the scores just made by a reward, and `cache_hits` more from the cache."""
        self._names.add(name)
        self._requests_of(name).inc(len(scores) + cache_hits)
        self._hits_of(name).inc(cache_hits)
        causes = [score["status"] for score in scores]
        for cause in set(causes) - {Status.OK}:
            self._failures.labels(name, cause.value).inc(causes.count(cause))

    def forget(self, name: str) -> None:
        """Drop all series of a reward."""
        if name not in self._names:
            return
        self._names.remove(name)
        self._requests_of.cache_clear()
        self._hits_of.cache_clear()
        for metric in (self._requests, self._hits, self._seconds, self._queue, self._circuit):
            metric.labels(name)  # older clients cannot remove what is not there
            metric.remove(name)
        for cause in Status:
            self._failures.labels(name, cause.value)
            self._failures.remove(name, cause.value)
