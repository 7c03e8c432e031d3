"""What can be seen of the reward API from outside: metrics per reward, logs with request ids, no secrets in either."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from PIL import Image
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp

from lasro.redis_store.connection import connect_async
from lasro.redis_store.registry import RewardRegistry
from lasro.wire import ScoreRequest
from lasro_reward_api.app import create_app
from lasro_reward_api.endpoints.pool import EndpointPool
from lasro_reward_api.metrics import RewardMetrics
from lasro_reward_api.scoring_process import forget_deleted
from lasro_reward_api.settings import RewardApiSettings

Serve = Callable[[ASGIApp], str]
SECRET, HEADER_VALUE = "s3cr3t-t0ken", "t3n4nt-value"


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def url(redis_url: str, serve: Serve) -> str:
    settings = RewardApiSettings(
        redis_url=redis_url,  # pyright: ignore[reportArgumentType]
        allowed_networks="127.0.0.0/8",
        max_attempts=1,
        circuit_failures=1,
        circuit_open_s=600.0,
    )
    return serve(create_app(settings))


@pytest.fixture(scope="module")
def scorer_url(serve: Serve) -> str:
    app = FastAPI()

    @app.post("/")
    async def score(request: Request) -> dict[str, list[float]]:
        return {"scores": [1.0] * len((await request.json())["images"])}

    @app.post("/down")
    async def down() -> Response:
        return Response(status_code=500)

    @app.post("/echo/{where}")
    async def echo(request: Request, where: str) -> Response:
        """Gives away what it was sent, as a badly written scorer's error message does."""
        shown = f"got {request.headers['authorization']} and {request.headers['x-tenant']}"
        if where == "item":
            return Response(json.dumps({"scores": [None], "errors": [shown]}))
        return Response(shown, status_code=400)

    return serve(app)


def register(api_url: str, scorer_url: str, **spec: Any) -> str:
    name = f"m-{uuid.uuid4().hex}"
    body = {"name": name, "url": f"{scorer_url}/", "protocol": "native"} | spec
    assert httpx.post(f"{api_url}/v1/rewards", json=body, timeout=60).status_code == 201
    return name


def score(url: str, name: str, *shades: int) -> httpx.Response:
    request = ScoreRequest(prompts=["p"] * len(shades), images=[png(shade) for shade in shades], rewards=[name])
    return httpx.post(f"{url}/v1/score", json=request.model_dump(mode="json"), timeout=30)


def series(url: str, name: str) -> dict[str, float]:
    """The samples of one reward, with the cause of failures in the name; no buckets."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            if sample.labels.get("reward") == name and "le" not in sample.labels:
                found[sample.name + sample.labels.get("cause", "")] = sample.value
    return found


def test_a_reward_is_counted_from_request_to_circuit(url: str, scorer_url: str) -> None:
    """Bug: a dashboard cannot tell a scorer that is slow from one that is down, or a cache that works from none."""
    good, down = register(url, scorer_url), register(url, scorer_url, url=f"{scorer_url}/down")
    for name, shades in ((good, (1, 2)), (good, (1, 2, 3)), (down, (1,)), (down, (2,))):
        answer = score(url, name, *shades)
        assert answer.status_code == 200, answer.text
    found = series(url, good)
    assert found["lasro_reward_requests_total"] == 5
    assert found["lasro_reward_cache_hits_total"] == 2
    assert found["lasro_reward_call_seconds_count"] == 2
    assert found["lasro_reward_queue_size"] == 0
    assert found["lasro_reward_circuit_state"] == 0
    found = series(url, down)
    assert found["lasro_reward_failures_totalhttp_error"] == 1
    assert found["lasro_reward_failures_totalunavailable"] == 1
    assert found["lasro_reward_circuit_state"] == 2


def test_series_are_made_for_registered_rewards_only_and_go_with_them(url: str, scorer_url: str) -> None:
    """Bug: the memory of API and Prometheus grows with every name that anybody makes up, or was ever registered."""
    before = httpx.get(f"{url}/metrics").text.count('reward="')
    for _ in range(5):
        made_up = f"none-{uuid.uuid4().hex}"
        assert score(url, made_up, 1).status_code == 404
        assert series(url, made_up) == {}
        name = register(url, scorer_url, cache=False)
        score(url, name, 1)
        assert series(url, name)
        assert httpx.delete(f"{url}/v1/rewards/{name}").status_code == 204
        assert series(url, name) == {}
    assert httpx.get(f"{url}/metrics").text.count('reward="') == before


def test_methods_that_do_not_exist_make_no_series(url: str) -> None:
    """Bug: `labels(method)` takes whatever word the client sends."""
    host, _, port = url.removeprefix("http://").partition(":")
    for word in ("FROB1", "FROB2"):
        with socket.create_connection((host, int(port)), timeout=10) as raw:
            raw.sendall(f"{word} /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            while raw.recv(4096):
                pass
    assert "FROB" not in httpx.get(f"{url}/metrics").text


def test_a_reward_deleted_elsewhere_is_forgotten_here(redis_url: str) -> None:
    """Bug: with two API processes, the series of deleted rewards live on in the one that was not asked."""

    async def scenario() -> set[str]:
        metrics = RewardMetrics(CollectorRegistry())
        endpoints = EndpointPool(RewardApiSettings(), metrics)
        async with connect_async(redis_url) as client:
            metrics.called("deleted-elsewhere", 0.1)
            task = asyncio.create_task(forget_deleted(RewardRegistry(client), endpoints, 0.01))
            give_up_s = time.monotonic() + 20
            while metrics.names and time.monotonic() < give_up_s:
                await asyncio.sleep(0.01)
            task.cancel()
        return metrics.names

    assert asyncio.run(scenario()) == set()


def test_secrets_are_neither_logged_nor_returned(url: str, scorer_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: a scorer's error message or a log at level debug gives away the keys of paid scorers."""
    caplog.set_level(logging.DEBUG)
    shown = ""
    for path in ("/", "/echo/item", "/echo/body", "/down"):
        spec = {"url": scorer_url + path, "secret": SECRET, "headers": {"X-Tenant": HEADER_VALUE}}
        name = register(url, scorer_url, **spec)
        for answer in (
            score(url, name, 1),
            httpx.post(f"{url}/v1/rewards/{name}/probe", timeout=30),
            httpx.get(f"{url}/v1/rewards/{name}"),
            httpx.post(f"{url}/v1/rewards", json={"name": name, "protocol": "native"} | spec),
            httpx.put(f"{url}/v1/rewards/{name}", json={"name": name, "protocol": "no"} | spec),
            httpx.put(
                f"{url}/v1/rewards/{name}", json={"name": name, "protocol": "native"} | spec | {"secret": SECRET * 99}
            ),
        ):
            shown += answer.text
    shown += httpx.get(f"{url}/metrics").text + httpx.get(f"{url}/v1/rewards").text
    assert "[redacted]" in shown
    for text in (shown, caplog.text):
        assert SECRET not in text
        assert HEADER_VALUE not in text


def test_the_service_logs_json_with_request_ids(tmp_path: Path, redis_url: str, scorer_url: str) -> None:
    """Bug: a failure in the log cannot be matched with the request that a user complains about."""
    log_path = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as listener, log_path.open("wb") as log:
        own = {"LASRO_LISTEN_FD": str(listener.fileno()), "LASRO_REDIS_URL": redis_url}
        own |= {"LASRO_ALLOWED_NETWORKS": "127.0.0.0/8", "LASRO_MAX_ATTEMPTS": "1", "LASRO_LOG_LEVEL": "debug"}
        command = [sys.executable, "-m", "lasro_reward_api"]
        with subprocess.Popen(
            command, env=os.environ | own, pass_fds=[listener.fileno()], stderr=log, stdout=log
        ) as process:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            name = register(url, scorer_url, url=f"{scorer_url}/down", secret=SECRET)
            request = ScoreRequest(prompts=["p"], images=[png(1)], rewards=[name]).model_dump(mode="json")
            httpx.post(f"{url}/v1/score", json=request, headers={"X-Request-ID": "complaint-1"}, timeout=60)
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    lines = [json.loads(line) for line in log_path.read_text().splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    about = [line for line in lines if line.get("request_id") == "complaint-1"]
    assert any(name in line["message"] and "http_error" in line["message"] for line in about)
    answered = next(line for line in about if line.get("route") == "/v1/score")
    assert (answered["status"], answered["method"]) == (200, "POST")
    assert SECRET not in log_path.read_text()
