"""What Prometheus is told of a run, and where the client looks for services."""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lasro.config import ServiceSettings
from lasro.errors import ConfigError
from lasro.wire import KindAccuracy
from lasro_client.run.observer import Observers, RunInfo
from lasro_client.run.round_record import GeneratorRecord, RewardRecord, RoundRecord, SurrogateRecord
from lasro_client.services.connect import Urls, urls
from lasro_client.watch.prometheus import PrometheusMetrics

RECORD = RoundRecord(
    "train",
    round=4,
    reward_calls=90,
    rewards=RewardRecord(rewards={"binding": {1: 0.25, 2: 0.5}}, total={1: 0.25, 2: 0.5}),
    generator=GeneratorRecord(drift={1: 0.1, 2: None}),
    surrogate=SurrogateRecord(accuracy_by_kind={"same_z1": KindAccuracy(accuracy=0.75, pairs=8)}),
)
DEMO = RunInfo("demo", "train", Path("unused"), None)


@contextmanager
def observed(run: RunInfo = DEMO) -> Iterator[PrometheusMetrics]:
    metrics = PrometheusMetrics()
    observers = Observers([metrics])
    with observers.run(run), observers.rounds(10, 0):
        yield metrics


def test_the_rounds_of_a_run_can_be_scraped(monkeypatch) -> None:
    """Bug: a run's true reward is nowhere but in its folder; or what was not measured shows as zero."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("LASRO_METRICS_PORT", str(port))
    with observed() as metrics:
        metrics.round_done(RECORD)
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["lasro_run_rounds", "demo"] == 5
    assert samples["lasro_run_reward_calls", "demo"] == 90
    assert samples["lasro_run_trouble", "demo"] == 0
    assert samples["lasro_run_reward", "binding", "demo", "two_step"] == 0.5
    assert samples["lasro_run_total", "demo", "one_step"] == 0.25
    assert math.isnan(samples["lasro_run_gain", "demo", "one_step"])
    assert samples["lasro_run_pair_accuracy", "demo", "same_z1"] == 0.75
    assert math.isnan(samples["lasro_run_pair_accuracy", "across_seeds", "demo"])
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False)


def test_without_a_port_nothing_is_served(monkeypatch) -> None:
    """Bug: every run opens a port."""
    monkeypatch.delenv("LASRO_METRICS_PORT", raising=False)
    with observed() as metrics:
        metrics.round_done(RECORD)


@pytest.mark.parametrize("port", ["none", "70000", "taken"])
def test_a_port_that_cannot_be_served_is_told(port: str, monkeypatch) -> None:
    """Bug: a traceback, hours of training later or at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("LASRO_METRICS_PORT", str(listener.getsockname()[1]) if port == "taken" else port)
        with pytest.raises(ConfigError, match="LASRO_METRICS_PORT"), observed():
            pass


def test_services_are_where_the_settings_or_else_the_environment_say(monkeypatch) -> None:
    """Bug: one configuration for a laptop and another for the composed services; or a stack of its own beside them."""
    monkeypatch.delenv("LASRO_REWARD_API_URL", raising=False)
    monkeypatch.setenv("LASRO_SURROGATE_TRAINER_URL", "")
    assert urls(ServiceSettings()) is None
    monkeypatch.setenv("LASRO_REWARD_API_URL", "http://reward-api:8000")
    with pytest.raises(ConfigError, match="got one of them"):
        urls(ServiceSettings())
    monkeypatch.setenv("LASRO_SURROGATE_TRAINER_URL", "http://surrogate-trainer:8001")
    assert urls(ServiceSettings()) == Urls("http://reward-api:8000", "http://surrogate-trainer:8001")
    named = ServiceSettings(reward_api="http://a", surrogate_trainer="http://b")
    assert urls(named) == Urls("http://a", "http://b")
