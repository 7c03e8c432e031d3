"""Redis is restarted between two calls of each route of both services: the second is answered as the first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from faulty_scorer import png
from known_groups import REWARD, SPEC, known_group, run_of
from redis_on_tcp import RedisOnTcp
from starlette.types import ASGIApp
from typer.testing import CliRunner

from lasro import wire
from lasro.redis_store.connection import connect
from lasro_client.cli.main import app
from lasro_reward_api.app import create_app as create_reward_api
from lasro_reward_api.settings import RewardApiSettings
from lasro_surrogate_trainer.app import create_app as create_trainer
from lasro_surrogate_trainer.settings import TrainerEnvironment

AT_ONCE = 4
"""Calls of the reward API at the same time, so that its pool holds several connections."""
LATENTS = np.zeros((1, 4, 8, 8), np.float16)
Call = Callable[[httpx.Client, int], httpx.Response]
"""Makes one call of a route; no number comes twice."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisOnTcp]:
    with RedisOnTcp(tmp_path_factory.mktemp("redis-on-tcp")) as started:
        yield started


@pytest.fixture(scope="module")
def reward_api(server: RedisOnTcp, serve: Callable[[ASGIApp], str]) -> Iterator[httpx.Client]:
    settings = RewardApiSettings.model_validate({"redis_url": server.url, "allowed_networks": "127.0.0.0/8"})
    with httpx.Client(base_url=serve(create_reward_api(settings)), timeout=60) as client:
        assert client.put(f"/v1/rewards/{REWARD}", json=spec(REWARD)).is_success
        yield client


@pytest.fixture(scope="module")
def config(one_level_model_path: Path) -> dict[str, Any]:
    return run_of(one_level_model_path).model_dump(mode="json")


@pytest.fixture(scope="module")
def trainer(
    server: RedisOnTcp,
    reward_api: httpx.Client,
    serve: Callable[[ASGIApp], str],
    tmp_path_factory: pytest.TempPathFactory,
    config: dict[str, Any],
) -> Iterator[httpx.Client]:
    """With the run `kept`, whose groups are on their way."""
    settings = TrainerEnvironment.model_validate({"redis_url": server.url, "data_dir": tmp_path_factory.mktemp("data")})
    with httpx.Client(base_url=serve(create_trainer(settings)), timeout=60) as client:
        assert client.put("/v1/runs/kept", json=config).is_success
        assert all(submit(reward_api, number, "kept").is_success for number in range(2))
        yield client


def spec(name: str) -> dict[str, Any]:
    return SPEC.model_copy(update={"name": name}).model_dump(mode="json")


def post(http: httpx.Client, path: str, message: wire.Message) -> httpx.Response:
    return http.post(path, content=wire.to_msgpack(message), headers={"Content-Type": wire.MSGPACK_TYPE})


def submit(http: httpx.Client, number: int, run: str = "posted") -> httpx.Response:
    return post(http, f"/v1/runs/{run}/groups", known_group(number))


def score(http: httpx.Client, number: int) -> httpx.Response:
    return post(http, "/v1/score", wire.ScoreRequest(prompts=["p"], images=[png(number)], rewards=[REWARD]))


def delete_reward(http: httpx.Client, number: int) -> httpx.Response:
    assert http.put(f"/v1/rewards/deleted-{number}", json=spec(f"deleted-{number}")).is_success
    return http.delete(f"/v1/rewards/deleted-{number}")


def get(path: str) -> Call:
    return lambda http, _: http.get(path)


REWARD_API: Mapping[str, tuple[int, Call]] = {
    "get /health/live": (200, get("/health/live")),
    "get /health/ready": (200, get("/health/ready")),
    "post /v1/score": (200, score),
    "get /v1/rewards": (200, get("/v1/rewards")),
    "post /v1/rewards": (201, lambda http, number: http.post("/v1/rewards", json=spec(f"new-{number}"))),
    "get /v1/rewards/{name}": (200, get(f"/v1/rewards/{REWARD}")),
    "put /v1/rewards/{name}": (201, lambda http, number: http.put(f"/v1/rewards/p-{number}", json=spec(f"p-{number}"))),
    "delete /v1/rewards/{name}": (204, delete_reward),
    "post /v1/rewards/{name}/probe": (200, lambda http, _: http.post(f"/v1/rewards/{REWARD}/probe")),
    "post /v1/runs/{run}/groups": (202, submit),
    "get /v1/runs/{run}/groups/{group_id}": (200, get("/v1/runs/read/groups/g0")),
}
"""Status and call of each operation in the service's OpenAPI document."""


def put_run(config: dict[str, Any], http: httpx.Client, name: str) -> httpx.Response:
    return http.put(f"/v1/runs/{name}", json=config)


def delete_run(config: dict[str, Any], http: httpx.Client, number: int) -> httpx.Response:
    assert put_run(config, http, f"deleted-{number}").is_success
    return http.delete(f"/v1/runs/deleted-{number}")


def adapt(http: httpx.Client, number: int) -> httpx.Response:
    names = [known_group(index).group_id for index in range(2)]
    return http.post("/v1/runs/kept/adapt", json={"request_id": f"a{number}", "new_groups": names, "steps": 1})


def send_tensors(http: httpx.Client, method: str, path: str, body: bytes) -> httpx.Response:
    return http.request(method, f"/v1/runs/{path}", content=body, headers={"Content-Type": wire.SAFETENSORS_TYPE})


def send_latents(path: str, **others: np.ndarray) -> Call:
    body = wire.pack_tensors({"latents": LATENTS, **others}, {"prompts": wire.pack_prompts(["a red star"])})
    return lambda http, _: send_tensors(http, "POST", f"kept/{path}", body)


def upload(config: dict[str, Any], http: httpx.Client, number: int) -> httpx.Response:
    assert put_run(config, http, f"fresh-{number}").is_success
    weights = http.get(f"/v1/runs/fresh-{number}/weights").content
    return send_tensors(http, "PUT", f"fresh-{number}/weights", weights)


def trainer_calls(config: dict[str, Any]) -> Mapping[str, tuple[int, Call]]:
    return {
        "get /health/live": (200, get("/health/live")),
        "get /health/ready": (200, get("/health/ready")),
        "get /v1/runs": (200, get("/v1/runs")),
        "put /v1/runs/{run}": (201, lambda http, number: put_run(config, http, f"new-{number}")),
        "get /v1/runs/{run}": (200, get("/v1/runs/kept")),
        "delete /v1/runs/{run}": (204, partial(delete_run, config)),
        "post /v1/runs/{run}/adapt": (200, adapt),
        "put /v1/runs/{run}/weights": (200, partial(upload, config)),
        "get /v1/runs/{run}/weights": (200, get("/v1/runs/kept/weights")),
        "get /v1/runs/{run}/weights/{version}": (200, get("/v1/runs/kept/weights/0")),
        "get /v1/runs/{run}/versions": (200, get("/v1/runs/kept/versions")),
        "put /v1/runs/{run}/lease": (200, lambda http, _: http.put("/v1/runs/kept/lease", json={"version": 0})),
        "post /v1/runs/{run}/score": (200, send_latents("score")),
        "post /v1/runs/{run}/gradient": (200, send_latents("gradient", noise=LATENTS, timesteps=np.array([20]))),
    }


TRAINER = tuple(trainer_calls({}))


def operations(http: httpx.Client) -> set[str]:
    paths = http.get("/openapi.json").json()["paths"]
    return {f"{method} {path}" for path, methods in paths.items() for method in methods}


def test_no_route_is_left_out(reward_api: httpx.Client, trainer: httpx.Client) -> None:
    """Bug: a route was added that fails once after each restart of Redis, and nobody tried it."""
    assert operations(reward_api) == set(REWARD_API)
    assert operations(trainer) == set(TRAINER)


@pytest.mark.parametrize("operation", REWARD_API)
def test_a_restart_costs_no_call_of_the_reward_api(
    server: RedisOnTcp, reward_api: httpx.Client, operation: str
) -> None:
    """Bug: after a restart of Redis the next call on each pooled connection was answered 502, 'Connection closed by
    server': a registration or a score failed, and the next one did not."""
    status, call = REWARD_API[operation]
    assert submit(reward_api, 0, "read").is_success
    for first in (0, AT_ONCE):
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = list(pool.map(partial(call, reward_api), range(first, first + AT_ONCE)))
        assert [answer.status_code for answer in answers] == [status] * AT_ONCE, answers[0].text
        server.restart()


@pytest.mark.parametrize("operation", TRAINER)
def test_a_restart_costs_no_call_of_the_trainer(
    server: RedisOnTcp, trainer: httpx.Client, config: dict[str, Any], operation: str
) -> None:
    """Bug: what the reward API did wrong after a restart of Redis, in the other service."""
    status, call = trainer_calls(config)[operation]
    for number in range(2):
        answer = call(trainer, number)
        assert answer.status_code == status, answer.text
        server.restart()


def test_registering_waits_for_redis(server: RedisOnTcp, reward_api: httpx.Client) -> None:
    """Bug: `docker compose up` after a kill of Redis ended with status 1, since registering was tried once, while Redis
    was starting."""
    server.stop()
    starting = threading.Timer(0.3, server.start)
    starting.start()
    command = ["rewards", "add", "waits", SPEC.url, "--replace", "--reward-api", str(reward_api.base_url)]
    try:
        done = CliRunner().invoke(app, command)
    finally:
        starting.join()
    assert (done.exit_code, done.stdout) == (0, "waits version 1\n")
    assert done.stderr.count("trying again for 10 s") == 1
    assert reward_api.get("/v1/rewards/waits").is_success


def test_the_trainer_is_not_ready_where_redis_takes_no_writes(server: RedisOnTcp, trainer: httpx.Client) -> None:
    """Bug: a trainer whose Redis was a read-only replica was ready, and could acknowledge nothing."""
    with connect(server.url) as admin:
        admin.execute_command("REPLICAOF", "127.0.0.1", "1")
        answer = trainer.get("/health/ready")
        admin.execute_command("REPLICAOF", "NO", "ONE")
    assert answer.status_code == 503
    assert "Redis takes no writes" in answer.json()["detail"]
    assert trainer.get("/health/ready").is_success
