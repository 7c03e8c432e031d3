"""The scoring path under load and under a failing scorer, over real HTTP: circuit, admission, deadlines, batches."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from PIL import Image
from starlette.types import ASGIApp

from lasro.wire import ScoreRequest
from lasro_client.services.reward_client import RewardClient
from lasro_reward_api.app import create_app
from lasro_reward_api.settings import RewardApiSettings

Serve = Callable[[ASGIApp], str]
JSON = {"Content-Type": "application/json"}
NAME = "loaded"


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


class Scorer:
    """Scores every image with its prompt's number; fails with `status`, sleeps `delay_s`, remembers what it got."""

    def __init__(self, serve: Serve) -> None:
        self.status, self.delay_s, self.reply_headers = 200, 0.0, {}
        self.batches: list[list[str]] = []
        self.headers: list[dict[str, str]] = []
        app = FastAPI()
        app.post("/")(self.score)
        self.url = f"{serve(app)}/"

    async def score(self, request: Request) -> Response:
        body = await request.json()
        self.batches.append(body["prompts"])
        self.headers.append(dict(request.headers))
        await asyncio.sleep(self.delay_s)
        if self.status != 200 or "breaks" in body["metadata"]:
            return Response(status_code=424 if self.status == 200 else self.status, headers=self.reply_headers)
        return Response(f'{{"scores": [{", ".join(body["prompts"])}]}}', media_type="application/json")


@pytest.fixture
def scorer(serve: Serve) -> Scorer:
    return Scorer(serve)


def start(serve: Serve, redis_url: str, scorer: Scorer, spec: dict[str, Any] | None = None, **settings: Any) -> str:
    """An API process of its own with one reward; returns its URL."""
    options = {"redis_url": redis_url, "allowed_networks": "127.0.0.0/8", "max_attempts": 1} | settings
    url = serve(create_app(RewardApiSettings(**options)))
    body = {"name": NAME, "url": scorer.url, "protocol": "native", "cache": False} | (spec or {})
    assert httpx.put(f"{url}/v1/rewards/{NAME}", json=body).status_code < 300
    return url


def body(*numbers: int, metadata: list[Any] | None = None) -> str:
    prompts, images = [str(number) for number in numbers], [png(number % 256) for number in numbers]
    return ScoreRequest(prompts=prompts, images=images, rewards=[NAME], metadata=metadata).model_dump_json()


def post(url: str, content: str, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.post(f"{url}/v1/score", content=content, headers=JSON | (headers or {}), timeout=30)


def scores(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [item["scores"][NAME] for item in answer.json()["items"]]


def at_once(url: str, contents: list[str], headers: dict[str, str] | None = None) -> list[httpx.Response]:
    async def send() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, headers=JSON, timeout=30) as client:
            return await asyncio.gather(*(client.post("/v1/score", content=c, headers=headers) for c in contents))

    return asyncio.run(send())


def test_a_failing_reward_is_left_alone(serve: Serve, redis_url: str, scorer: Scorer) -> None:
    """Bug: a scorer that is down is called for every image, each call waiting for its timeout."""
    url = start(serve, redis_url, scorer, circuit_failures=2, circuit_open_s=600.0)
    scorer.status = 500
    assert [scores(post(url, body(1)))[0]["status"] for _ in range(3)] == ["http_error", "http_error", "unavailable"]
    assert len(scorer.batches) == 2
    assert "circuit open" in scores(post(url, body(1)))[0]["error"]


def test_a_repaired_reward_is_taken_up_again(serve: Serve, redis_url: str, scorer: Scorer) -> None:
    """Bug: a circuit once open stays so, or a trial that fails closes it."""
    url = start(serve, redis_url, scorer, circuit_failures=1, circuit_open_s=0.2)
    scorer.status = 500
    give_up_s = time.monotonic() + 60
    while len(scorer.batches) < 3:  # the first call and two trials
        assert scores(post(url, body(1)))[0]["status"] in ("http_error", "unavailable")
        assert time.monotonic() < give_up_s
    scorer.status = 200
    while scores(post(url, body(7)))[0]["score"] != 7.0:
        assert time.monotonic() < give_up_s
    assert scores(post(url, body(8)))[0]["score"] == 8.0


def test_a_scorer_that_hangs_is_left_alone(serve: Serve, redis_url: str, scorer: Scorer) -> None:
    """Bug: only refusals count, and every image waits for the timeout of a scorer that hangs."""
    url = start(serve, redis_url, scorer, {"timeout_s": 0.3}, circuit_failures=1, circuit_open_s=600.0)
    scorer.delay_s = 2.0
    assert [scores(post(url, body(1)))[0]["status"] for _ in range(2)] == ["timeout", "unavailable"]


def test_a_probe_closes_the_circuit(serve: Serve, redis_url: str, scorer: Scorer) -> None:
    """Bug: an operator who has repaired the scorer cannot tell the API so."""
    url = start(serve, redis_url, scorer, circuit_failures=1, circuit_open_s=600.0)
    scorer.status = 503
    post(url, body(1))
    assert scores(post(url, body(1)))[0]["status"] == "unavailable"
    scorer.status = 422  # it answers again; that it dislikes the probe's prompt does not matter
    assert httpx.post(f"{url}/v1/rewards/{NAME}/probe", timeout=30).json()["status"] == "http_error"
    scorer.status = 200
    assert scores(post(url, body(3)))[0]["score"] == 3.0


@pytest.mark.parametrize("status", [400, 404, 422, 429])
def test_an_answer_is_no_failure(serve: Serve, redis_url: str, scorer: Scorer, status: int) -> None:
    """Bug: one client's malformed images cut a healthy scorer off from all others."""
    url = start(serve, redis_url, scorer, circuit_failures=1)
    scorer.status = status
    post(url, body(1))
    scorer.status = 200
    assert scores(post(url, body(2)))[0]["score"] == 2.0


def test_an_impatient_caller_gets_its_timeout_and_opens_no_circuit(
    serve: Serve, redis_url: str, scorer: Scorer
) -> None:
    """Bug: a client with a short deadline waits longer than it said, or makes a slow scorer unavailable to all."""
    url = start(serve, redis_url, scorer, circuit_failures=1)
    scorer.delay_s = 20.0
    started_s = time.perf_counter()
    found = scores(post(url, body(1), {"X-Request-Timeout-S": "0.5"}))
    assert time.perf_counter() - started_s < 15
    assert (found[0]["status"], found[0]["score"]) == ("timeout", None)
    scorer.delay_s = 0.0
    assert scores(post(url, body(2)))[0]["score"] == 2.0


def test_the_endpoint_is_told_how_long_it_has_and_for_whom(serve: Serve, redis_url: str, scorer: Scorer) -> None:
    """Bug: a scorer works on what nobody waits for any more, and its log cannot be matched with the API's."""
    url = start(serve, redis_url, scorer, {"timeout_s": 20})
    answer = post(url, body(1), {"X-Request-Timeout-S": "5", "X-Request-ID": "abc-1"})
    post(url, body(1), {"X-Request-Timeout-S": "600"})
    first, second = scorer.headers
    assert 3.0 < float(first["x-request-timeout-s"]) <= 5.0
    assert float(second["x-request-timeout-s"]) == 20.0
    assert first["x-request-id"] == answer.headers["x-request-id"] == "abc-1"
    assert len(second["x-request-id"]) == 32


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "1e9"])
def test_a_timeout_that_is_none_is_refused(serve: Serve, redis_url: str, scorer: Scorer, value: str) -> None:
    """Bug: NaN as a deadline never passes, and the request waits for ever."""
    url = start(serve, redis_url, scorer)
    assert post(url, body(1), {"X-Request-Timeout-S": value}).status_code == 422


def test_retries_end_with_the_deadline(serve: Serve, redis_url: str, scorer: Scorer) -> None:
    """Bug: a Retry-After that outlasts the caller is waited for, holding one of the reward's slots."""
    url = start(serve, redis_url, scorer, max_attempts=3)
    scorer.status, scorer.reply_headers = 429, {"Retry-After": "20"}
    started_s = time.perf_counter()
    found = scores(post(url, body(1), {"X-Request-Timeout-S": "19"}))
    assert time.perf_counter() - started_s < 15
    assert (found[0]["status"], found[0]["attempts"]) == ("http_error", 1)


def test_a_full_queue_is_429_and_a_full_process_503(serve: Serve, redis_url: str, scorer: Scorer) -> None:
    """Bug: images pile up in memory until the process is killed, or the refusal does not say when to come again."""
    url = start(serve, redis_url, scorer, {"concurrency": 1}, max_reward_items=4)
    scorer.delay_s = 1.5
    answers = at_once(url, [body(1, 2, 3), body(4, 5, 6)])
    assert sorted(answer.status_code for answer in answers) == [200, 429]
    small = start(serve, redis_url, scorer, max_items=4)
    answers += at_once(small, [body(1, 2, 3), body(4, 5, 6)])
    lone = start(serve, redis_url, scorer, max_requests=1)
    answers += at_once(lone, [body(1), body(2)])
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 429, 503, 503]
    for answer in answers:
        if answer.status_code != 200:
            assert answer.headers["content-type"] == "application/problem+json"
            assert int(answer.headers["retry-after"]) >= 1
            assert "LASRO_MAX_" in answer.json()["detail"]
    scorer.delay_s = 0.0
    assert scores(post(url, body(1, 2, 3)))[2]["score"] == 3.0
    assert len(scores(post(url, body(*range(9))))) == 9, "alone, what is larger than the queue is let in"


def test_a_client_waits_for_its_turn(serve: Serve, redis_url: str, scorer: Scorer) -> None:
    """Bug: an evaluation ends because somebody else's images fill the queue for a moment."""
    url = start(serve, redis_url, scorer, {"concurrency": 1}, max_reward_items=3)
    scorer.delay_s = 0.5

    def score_two(first: int) -> list[float | None]:
        request = ScoreRequest.model_validate_json(body(first, first + 1))
        with RewardClient(url, timeout_s=60) as client:
            return [item.scores[NAME].score for item in client.score(request).items]

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(score_two, (1, 3, 5))) == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


def test_concurrent_requests_share_calls_and_keep_their_answers(serve: Serve, redis_url: str, scorer: Scorer) -> None:
    """Bug: scores are given to the images of another request, or each small request makes a call of its own."""
    url = start(serve, redis_url, scorer, {"max_batch": 8, "concurrency": 2}, batch_wait_s=0.5)
    requests = [list(range(10 * n, 10 * n + 3)) for n in range(8)]
    answers = at_once(url, [body(*numbers) for numbers in requests])
    for numbers, answer in zip(requests, answers, strict=True):
        assert [score["score"] for score in scores(answer)] == numbers
    assert len(scorer.batches) < 8
    assert max(map(len, scorer.batches)) == 8


def test_one_requests_metadata_costs_nobody_else(serve: Serve, redis_url: str, scorer: Scorer) -> None:
    """Bug: metadata that a scorer chokes on fails the images of every request in the same call."""
    url = start(serve, redis_url, scorer, batch_wait_s=0.5)
    good, bad = at_once(url, [body(1, 2), body(3, 4, metadata=["breaks", None])])
    assert [score["score"] for score in scores(good)] == [1.0, 2.0]
    assert {score["status"] for score in scores(bad)} == {"http_error"}
