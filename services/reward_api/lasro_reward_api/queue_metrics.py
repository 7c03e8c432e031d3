"""Prometheus metrics of the queue in Redis: how far the scoring workers are behind.

They are read every few seconds and not when scraped, so that a Redis that hangs delays no scrape.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import redis
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lasro.errors import StorageError, UnreachableError
from lasro.redis_store.overview import WorkFigures, work_figures
from lasro_reward_api.worker import is_cancelled

log = logging.getLogger("lasro.reward_api")
READ_S = 5.0


class QueueMetrics(Collector):
    """The last figures read; none while Redis does not answer, since old ones would look like a living queue."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._figures: WorkFigures | None = None

    def collect(self) -> Iterator[Metric]:
        figures = self._figures
        if figures is None:
            return
        yield GaugeMetricFamily("lasro_queue_waiting_groups", "Groups that no worker has claimed yet", figures.waiting)
        yield GaugeMetricFamily("lasro_queue_claimed_groups", "Groups being scored", figures.claimed)
        yield GaugeMetricFamily("lasro_queue_dead_groups", "Dead-lettered groups", figures.dead)
        yield GaugeMetricFamily("lasro_queue_oldest_seconds", "Age of the oldest unscored group", figures.oldest_s or 0)

    async def keep_reading(self, interval_s: float = READ_S) -> None:
        """Until cancelled."""
        while not is_cancelled():
            try:
                self._figures = await asyncio.to_thread(work_figures, self._redis)
            except (UnreachableError, StorageError) as error:
                log.debug("the queue cannot be read: %s", error)
                self._figures = None
            await asyncio.sleep(interval_s)
