"""What Prometheus learns of a run while it lasts: its log line of each round, at LASRO_METRICS_PORT.

with round_metrics("demo") as observe:
    observe(line)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lasro.errors import ConfigError

Observe = Callable[[dict[str, Any]], None]
PORT, HOST = "LASRO_METRICS_PORT", "LASRO_HOST"
BY_STAGE = {
    "total": ("lasro_run_total", "Mean total of the rewards of the generator's own samples, of one round"),
    "gain": ("lasro_run_gain", "The same minus that of the base on the same noise"),
    "drift": ("lasro_run_drift", "Distance from the base's latents; 1: as another seed"),
}


@contextmanager
def round_metrics(run: str) -> Iterator[Observe]:
    """Serves metrics while inside, and takes a run's log lines; does nothing where LASRO_METRICS_PORT is not set."""
    port = os.environ.get(PORT)
    if not port:
        yield lambda line: None
        return
    import prometheus_client

    registry = prometheus_client.CollectorRegistry()
    observe = _gauges(run, registry)
    try:
        server, thread = prometheus_client.start_http_server(int(port), os.environ.get(HOST, "127.0.0.1"), registry)
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"{PORT}: got {port}, which cannot be served ({error}); take a free port") from error
    try:
        yield observe
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _gauges(run: str, registry: Any) -> Observe:
    from prometheus_client import Gauge

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, ["run", *labels], registry=registry)

    rounds = gauge("lasro_run_rounds", "Rounds done")
    calls = gauge("lasro_run_reward_calls", "Images scored by a reward")
    trouble = gauge("lasro_run_trouble", "1 while the run's health is in trouble")
    reward = gauge(
        "lasro_run_reward", "Mean of a reward over the generator's own samples of a round", "reward", "stage"
    )
    staged = {key: gauge(name, text, "stage") for key, (name, text) in BY_STAGE.items()}

    def observe(line: dict[str, Any]) -> None:
        rounds.labels(run).set(line["round"] + 1)
        calls.labels(run).set(line["reward_calls"])
        trouble.labels(run).set(line["trouble"] is not None)
        for name, stages in line["reward"].items():
            for stage, value in stages.items():
                _set(reward.labels(run, name, stage), value)
        for key, each in staged.items():
            for stage, value in line[key].items():
                _set(each.labels(run, stage), value)

    return observe


def _set(gauge: Any, value: float | None) -> None:
    """Not a number where nothing was measured: the value of another round would be taken for this one's."""
    gauge.set(float("nan") if value is None else value)
