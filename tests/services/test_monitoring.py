"""deploy/monitoring: its rules and its dashboard name metrics that the running services export."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import httpx
import pytest
import torch
import yaml
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp

from lasro import wire
from lasro.config import ModelSettings, SurrogateRun, SurrogateSettings
from lasro.errors import ModelError
from lasro.reward_sdk import create_reward_app, load_reward
from lasro.service.serve import bind
from lasro_client.run.observer import Observers, RunInfo
from lasro_client.run.round_record import RewardRecord, RoundRecord
from lasro_client.services.surrogate_client import SurrogateClient
from lasro_client.watch.prometheus import PrometheusMetrics
from lasro_reward_api.app import create_app as create_reward_api
from lasro_reward_api.settings import RewardApiSettings
from lasro_surrogate_trainer.app import create_app as create_trainer
from lasro_surrogate_trainer.settings import TrainerEnvironment

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"
Serve = Callable[[ASGIApp], str]
RECORD = RoundRecord("train", 1, rewards=RewardRecord(rewards={"monitored": {1: 0.1, 2: 0.1}}))
# These are there once a run has been trained for a while, which test_surrogate_trainer.py does.
MEASURED = {"lasro_surrogate_held_out_pair_accuracy", "lasro_surrogate_reward_gap"}
OF_PROMETHEUS = {"up"}


def named(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:lasro_[a-z_]+|up)\b", re.sub(r'"[^"]*"', "", expression)))


def dashboard() -> list[str]:
    panels = json.loads((MONITORING / "grafana" / "lasro.json").read_text(encoding="utf-8"))["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def rules() -> list[dict[str, str]]:
    groups = yaml.safe_load((MONITORING / "rules.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def picture() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw", MONITORING / "draw.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def scraped(url: str) -> set[str]:
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", trust_env=False).text)
    return {sample.name for family in families for sample in family.samples}


@pytest.fixture(scope="module")
def trainer_url(
    redis_url: str, serve: Serve, one_level_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> str:
    values = {
        "redis_url": redis_url,
        "data_dir": tmp_path_factory.mktemp("trainer"),
        "probe_model": str(one_level_model_path),
    }
    return serve(create_trainer(TrainerEnvironment.model_validate(values)))


def test_rules_and_dashboard_name_metrics_that_there_are(
    redis_url: str, serve: Serve, trainer_url: str, one_level_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: a metric is renamed, a panel stays empty and an alert never fires."""
    settings = RewardApiSettings.model_validate({"redis_url": redis_url, "allowed_networks": "127.0.0.0/8"})
    api = serve(create_reward_api(settings))
    scorer = serve(create_reward_app(load_reward("lasro_rewards.jpeg:compressibility")))
    spec = {"name": "monitored", "url": f"{scorer}/", "protocol": "native"}
    with httpx.Client(base_url=api, timeout=60, trust_env=False) as client:
        client.put("/v1/rewards/monitored", json=spec).raise_for_status()
        assert client.post("/v1/rewards/monitored/probe").json()["status"] == "ok"
        client.get("/v1/rewards/none")
    model = ModelSettings(path=str(one_level_model_path), device="cpu")
    run = SurrogateRun(model=model, surrogate=SurrogateSettings(head_channels=16), weights={"monitored": 1.0})
    with SurrogateClient(trainer_url) as surrogates:
        surrogates.create("monitored", run)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.setenv("LASRO_METRICS_PORT", str(port))
    observers = Observers([PrometheusMetrics()])
    with observers.run(RunInfo("monitored", "train", Path("unused"), None)), observers.rounds(2, 0):
        observers.round_done(RECORD)
        found = scraped(f"http://127.0.0.1:{port}") | scraped(trainer_url) | MEASURED | OF_PROMETHEUS
    deadline = time.monotonic() + 20
    while "lasro_queue_waiting_groups" not in scraped(api) and time.monotonic() < deadline:
        time.sleep(0.1)
    found |= scraped(api)
    wanted = [*dashboard(), *(rule["expr"] for rule in rules()), *(panel.query for panel in picture().PANELS)]
    assert set().union(*map(named, wanted)) - found == set()


def test_the_picture_shows_every_curve_with_its_name() -> None:
    """Bug: a curve that never changes, or a name with a sign of XML in it, breaks the picture."""
    draw = picture()
    svg = draw.drawn(draw.PANELS[0], {"a<b": [(0.0, 1.0), (10.0, 1.0)], "none": []}, 10.0, 0, 0)
    text = "".join(ElementTree.fromstring(svg).itertext())
    assert "a<b" in text
    assert "none" in text
    assert svg.count("<polyline") == 2


def test_every_alert_is_tested_to_fire_and_not_to() -> None:
    """Bug: an alert whose expression is always or never true."""
    tests = yaml.safe_load((MONITORING / "rules_test.yml").read_text(encoding="utf-8"))["tests"]
    alerts = {rule["alert"] for rule in rules()}
    for test in tests:
        assert {case["alertname"] for case in test["alert_rule_test"]} == alerts, test["name"]
    assert [any(case.get("exp_alerts") for case in test["alert_rule_test"]) for test in tests] == [False, True]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("arguments", [("check", "config", "prometheus.yml"), ("test", "rules", "rules_test.yml")])
def test_promtool_finds_nothing(arguments: tuple[str, ...]) -> None:
    """Bug: a file that Prometheus refuses, or an alert that does not fire when it should."""
    done = subprocess.run(["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_a_run_a_surrogate_is_passed_through(trainer_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a trainer that cannot compute is healthy until its first run comes."""
    with SurrogateClient(trainer_url) as surrogates:
        if "monitored" in {status["run"] for status in httpx.get(f"{trainer_url}/v1/runs").json()["runs"]}:
            surrogates.delete("monitored")
    assert httpx.get(f"{trainer_url}/health/ready", timeout=60).status_code == 200
    nothing = torch.full((1,), torch.nan)
    monkeypatch.setattr("lasro.models.surrogate.SurrogateReward.forward", lambda *_: nothing)
    answer = httpx.get(f"{trainer_url}/health/ready", timeout=60)
    assert answer.status_code == 503
    assert "LASRO_PROBE_MODEL: got NaN or infinity" in wire.Problem.model_validate_json(answer.content).detail


def test_a_model_that_is_not_there_is_told_before_the_service_starts(redis_url: str, tmp_path: Path) -> None:
    """Bug: a container is up and healthy, and the first run is refused because no model is mounted."""
    values = {"redis_url": redis_url, "data_dir": tmp_path, "probe_model": str(tmp_path / "none")}
    settings = TrainerEnvironment.model_validate(values)
    with bind(settings), pytest.raises(ModelError, match=r"no model_index\.json there"):
        create_trainer(settings)
