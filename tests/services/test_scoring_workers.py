"""Scoring in processes of their own: shared work, killed workers, and a goodbye on SIGTERM."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis
from fastapi import FastAPI, Request
from PIL import Image
from starlette.types import ASGIApp

from lasro import wire
from lasro.errors import RewardError, StorageError
from lasro.redis_store import keys
from lasro.redis_store.connection import connect_async
from lasro.redis_store.group_queue import GroupQueue
from lasro.redis_store.overview import work_figures
from lasro.redis_store.sample_stream import SampleStream
from lasro.redis_store.work_stream import GROUP, RETURNED
from lasro.wire import GroupState, GroupSubmission, Protocol, RewardSpec
from lasro_client.services.reward_client import RewardClient
from lasro_reward_api.app import create_app
from lasro_reward_api.settings import RewardApiSettings

RUN = "scoring-workers"
NETWORKS = "127.0.0.0/8"
Start = Callable[..., subprocess.Popen[str]]


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    return buffer.getvalue()


class SlowScorer:
    """Scores everything 0.5, once it is no longer told to hang; counts calls."""

    def __init__(self, serve: Callable[[ASGIApp], str]) -> None:
        self.hangs, self.calls = False, 0
        app = FastAPI()
        app.post("/")(self.score)
        self.spec = RewardSpec(
            name="slow-half", url=f"{serve(app)}/", protocol=Protocol.NATIVE, cache=False, max_batch=2, concurrency=4
        )

    async def score(self, request: Request) -> dict[str, list[float]]:
        count = len((await request.json())["images"])
        self.calls += 1
        while self.hangs:
            await asyncio.sleep(0.02)
        return {"scores": [0.5] * count}


def submission(index: int) -> GroupSubmission:
    latents = wire.pack_tensors({"latents": np.zeros((2, 4, 2, 2), np.float16)})
    return GroupSubmission(
        group_id=f"g{index}", round=0, index=index, prompt=f"p{index}", policy_version=0, rewards=["slow-half"],
        stages=[1, 2], images=[png(), png()], latents=latents,
    )  # fmt: skip


def wait_until(condition: Callable[[], Any], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def scorer(serve: Callable[[ASGIApp], str]) -> SlowScorer:
    return SlowScorer(serve)


@pytest.fixture
def api(
    redis_url: str, redis_client: redis.Redis, serve: Callable[[ASGIApp], str], scorer: SlowScorer
) -> Iterator[RewardClient]:
    """An API that takes groups and leaves them to workers."""
    settings = RewardApiSettings(redis_url=redis_url, allowed_networks=NETWORKS, groups_at_once=0)  # pyright: ignore[reportArgumentType]
    with RewardClient(serve(create_app(settings))) as client:
        client.register(scorer.spec)
        yield client


@pytest.fixture
def worker(redis_url: str, tmp_path: Path) -> Iterator[Start]:
    """Starts `lasro worker` with these LASRO_* settings; returns once it is ready to be signalled."""
    with ExitStack() as stack:

        def start(**settings: str) -> subprocess.Popen[str]:
            environment = {"LASRO_REDIS_URL": redis_url, "LASRO_ALLOWED_NETWORKS": NETWORKS, **settings}
            log = stack.enter_context((tmp_path / "worker.log").open("a"))
            process = subprocess.Popen(
                [sys.executable, "-m", "lasro_client.cli.main", "worker"],
                env={**os.environ, **environment}, stdout=log, stderr=log, text=True,
            )  # fmt: skip
            stack.callback(lambda: (process.kill(), process.wait()))
            return process

        yield start


def test_a_killed_worker_loses_nothing_and_others_go_on(
    api: RewardClient, worker: Start, scorer: SlowScorer, redis_client: redis.Redis
) -> None:
    """Bug: groups in the hands of a killed worker are lost, or scored groups are delivered twice."""
    scorer.hangs = True
    groups = [submission(index) for index in range(12)]
    for group in groups:
        api.submit(RUN, group)
    time.sleep(0.3)
    assert api.group(RUN, "g0").state is GroupState.QUEUED
    settings = {"LASRO_STALE_AFTER_S": "5", "LASRO_GROUPS_AT_ONCE": "2"}
    workers = [worker(**settings) for _ in range(2)]
    wait_until(lambda: len([w for w in work_figures(redis_client).workers if w.claims]) == 2)
    workers[0].kill()
    workers[0].wait()
    scorer.hangs = False
    statuses = api.wait_scored(RUN, groups, timeout_s=120)
    assert {status.state for status in statuses.values()} == {GroupState.SCORED}
    delivered = [sample.group_id for _, sample in SampleStream(redis_client, RUN).read(50)]
    assert sorted(delivered) == sorted(group.group_id for group in groups)
    assert redis_client.xlen(keys.WORK) == redis_client.xlen(keys.DEAD_WORK) == 0


def test_sigterm_gives_claims_back_at_once(
    api: RewardClient, worker: Start, scorer: SlowScorer, redis_client: redis.Redis
) -> None:
    """Bug: a worker that is told to end waits for a slow scorer, or its groups wait until they are stale."""
    scorer.hangs, scorer.calls = True, 0
    api.submit(RUN, submission(0))
    first = worker(LASRO_STALE_AFTER_S="600")
    wait_until(lambda: scorer.calls == 1)
    started = time.monotonic()
    first.send_signal(signal.SIGTERM)
    first.wait(10)
    assert time.monotonic() - started < 5
    assert [(found.name, found.claims) for found in work_figures(redis_client).workers] == [(RETURNED, 1)]
    scorer.hangs = False
    worker(LASRO_STALE_AFTER_S="600")
    assert api.wait_scored(RUN, [submission(0)], timeout_s=120)["g0"].state is GroupState.SCORED


def test_a_worker_tells_of_its_health_and_nothing_else(worker: Start, redis_url: str) -> None:
    """Bug: nobody can see whether a worker works, or it answers what only the API should."""
    with httpx.Client(trust_env=False) as http:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        worker(LASRO_PORT=str(port))
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            try:
                return http.get(f"{url}/health/ready").status_code == 200
            except httpx.TransportError:
                return False

        wait_until(answers)
        assert "lasro_http_requests" in http.get(f"{url}/metrics").text
        assert http.get(f"{url}/v1/rewards").status_code == 404


def test_a_redis_that_evicts_is_refused_at_start(worker: Start, redis_client: redis.Redis, tmp_path: Path) -> None:
    """Bug: a worker starts on a Redis that was set up as a cache, and its groups vanish."""
    redis_client.config_set("maxmemory", "1gb")
    redis_client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert worker().wait(120) == 1
    finally:
        redis_client.config_set("maxmemory", "0")
        redis_client.config_set("maxmemory-policy", "noeviction")
    log = (tmp_path / "worker.log").read_text()
    assert "Redis evicts keys" in log
    assert "Traceback" not in log


def test_a_dead_lettered_group_ends_the_wait(api: RewardClient, redis_url: str, redis_client: redis.Redis) -> None:
    """Bug: a client waits until its timeout for a group that nobody will score, without a reason."""

    async def dead_letter() -> None:
        async with connect_async(redis_url) as client:
            queue = GroupQueue(client)
            (entry,) = await queue.take("test", 1, 0, 10_000)
            await queue.dead_letter(entry, "it bites", (RUN, "g0"))

    api.submit(RUN, submission(0))
    asyncio.run(dead_letter())
    status = api.group(RUN, "g0", wait_s=20)
    assert (status.state, status.error, status.items) == (GroupState.DEAD, "it bites", None)
    with pytest.raises(RewardError, match=r"it bites.*lasro queue ls"):
        api.wait_scored(RUN, [submission(0)], timeout_s=20)


def test_a_full_redis_is_emptied_by_scoring(
    api: RewardClient, worker: Start, scorer: SlowScorer, redis_client: redis.Redis
) -> None:
    """Bug: once Redis is full nothing can be scored either, so that it stays full for ever."""
    api.register(scorer.spec.model_copy(update={"cache": True}), replace=True)
    api.submit(RUN, submission(0))
    redis_client.xgroup_create(keys.WORK, GROUP, id="0")
    redis_client.config_set("maxmemory", "1")
    try:
        with pytest.raises(StorageError, match="takes no writes"):
            api.submit(RUN, submission(1))
        worker()
        wait_until(lambda: redis_client.xlen(keys.samples(RUN)) == 1)
    finally:
        redis_client.config_set("maxmemory", "0")
    assert api.group(RUN, "g0").state is GroupState.SCORED


def test_what_is_not_scored_in_time_has_no_score(
    redis_url: str, redis_client: redis.Redis, serve: Callable[[ASGIApp], str], scorer: SlowScorer
) -> None:
    """Bug: a group waits for a scorer without any limit, or is finished with a number nobody gave."""
    scorer.hangs = True
    settings = RewardApiSettings(redis_url=redis_url, allowed_networks=NETWORKS, group_timeout_s=0.5)  # pyright: ignore[reportArgumentType]
    with RewardClient(serve(create_app(settings))) as api:
        api.register(scorer.spec)
        status = api.wait_scored(RUN, [submission(0)], timeout_s=15)["g0"]
    scorer.hangs = False
    assert {item.scores["slow-half"].status for item in status.items or []} == {wire.Status.TIMEOUT}
    assert {item.total for item in status.items or []} == {None}
