"""Prometheus metrics of the runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lasro_surrogate_trainer.run_actor import RunActor

GAUGES = {
    "version": "Published version of the surrogate",
    "steps": "Optimiser steps behind the published version",
    "replay_groups": "Groups in the replay buffer",
    "queue_lag": "Samples on the stream not yet read",
    "held_out_pair_accuracy": "Pair accuracy on groups kept out of training",
    "reward_gap": "1 - Spearman correlation of score and reward within fresh groups",
}
COUNTERS = {
    "adapt_steps": "Optimiser steps taken by this process",
    "gradient_requests": "Gradient requests answered by this process",
}


class RunMetrics(Collector):
    """Read from the runs when scraped, so that a deleted run leaves nothing behind."""

    def __init__(self, runs: Callable[[], list[RunActor]]) -> None:
        self._runs = runs

    def collect(self) -> Iterator[Metric]:
        runs = [(run, run.status()) for run in self._runs()]
        for name, text in GAUGES.items():
            gauge = GaugeMetricFamily(f"lasro_surrogate_{name}", text, labels=["run"])
            for _, status in runs:
                value = getattr(status, name)
                if value is not None:
                    gauge.add_metric([status.run], value)
            yield gauge
        for name, text in COUNTERS.items():
            counter = CounterMetricFamily(f"lasro_surrogate_{name}", text, labels=["run"])
            for run, _ in runs:
                counter.add_metric([run.name], getattr(run, name))
            yield counter
