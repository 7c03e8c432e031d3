"""Metrics of a stage-2 run for Prometheus, served at LASRO_METRICS_PORT while its rounds last."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import Any

from lasro.errors import ConfigError
from lasro.num_steps import NumSteps
from lasro.wire import PAIR_KINDS, REFERENCE_KINDS
from lasro_client.evaluation.num_steps import by_name
from lasro_client.run.observer import Observer, RunInfo
from lasro_client.run.round_record import Means, RoundRecord

PORT, HOST = "LASRO_METRICS_PORT", "LASRO_HOST"


class PrometheusMetrics(Observer):
    """Does nothing where LASRO_METRICS_PORT is not set. Raises ConfigError for a port that cannot be served."""

    def __init__(self) -> None:
        self._run: RunInfo | None = None
        self._set: Callable[[RoundRecord], None] | None = None
        self._stop: Callable[[], None] | None = None

    def run_started(self, run: RunInfo) -> None:
        self._run = run

    def rounds_started(self, num_rounds: int, done: int) -> None:
        port = os.environ.get(PORT)
        if not port or self._run is None or self._run.stage != "train":
            return
        import prometheus_client

        registry = prometheus_client.CollectorRegistry()
        self._set = gauges(self._run.name, registry)
        try:
            server, thread = prometheus_client.start_http_server(int(port), os.environ.get(HOST, "127.0.0.1"), registry)
        except (OSError, ValueError, OverflowError) as error:
            raise ConfigError(f"{PORT}: got {port}, which cannot be served ({error}); take a free port") from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._stop = stop

    def round_done(self, record: RoundRecord) -> None:
        if self._set is not None:
            self._set(record)

    def rounds_ended(self) -> None:
        if self._stop is not None:
            self._stop()
        self._set = self._stop = None


def gauges(run: str, registry: Any) -> Callable[[RoundRecord], None]:
    """Gauges of a run in that `prometheus_client` registry; returns what sets them to a round's values."""
    from prometheus_client import Gauge

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, ["run", *labels], registry=registry)

    rounds = gauge("lasro_run_rounds", "Rounds done")
    calls = gauge("lasro_run_reward_calls", "Images scored by a reward")
    trouble = gauge("lasro_run_trouble", "1 while the run's health is in trouble")
    reward = gauge(
        "lasro_run_reward", "Mean of a reward over the generator's own samples of a round", "reward", "stage"
    )
    total = gauge("lasro_run_total", "Mean total of the rewards of the generator's own samples, of one round", "stage")
    gain = gauge("lasro_run_gain", "The same minus that of the base on the same noise", "stage")
    drift = gauge("lasro_run_drift", "Distance from the base's latents; 1: as another seed", "stage")
    accuracy = gauge("lasro_run_pair_accuracy", "The surrogate's on fresh pairs, by what a pair shares", "kind")

    def set_means(gauge: Gauge, means: Means, *labels: str) -> None:
        # Not a number where nothing was measured: the value of another round would be taken for this one's.
        for name, value in by_name(means).items():
            gauge.labels(run, *labels, name).set(float("nan") if value is None else value)

    def set_all(record: RoundRecord) -> None:
        rounds.labels(run).set(record.round + 1)
        calls.labels(run).set(record.reward_calls)
        trouble.labels(run).set(record.health.trouble is not None)
        for name, means in record.rewards.rewards.items():
            set_means(reward, means, name)
        set_means(total, record.rewards.total)
        set_means(gain, record.rewards.gain)
        set_means(drift, record.generator.drift)
        for kind in _kinds(record.rewards.total):
            found = record.surrogate.accuracy_by_kind.get(kind)
            accuracy.labels(run, kind).set(float("nan") if found is None else found.accuracy)

    return set_all


def _kinds(steps: Collection[NumSteps]) -> list[str]:
    """Of pairs, in a run that samples in these numbers of steps."""
    others = {kind for num_steps, kind in REFERENCE_KINDS.items() if num_steps not in steps}
    return [kind for kind in PAIR_KINDS if kind not in others]
