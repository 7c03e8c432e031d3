"""The reward API over real HTTP: registry, scoring, groups."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
import redis
from fastapi import FastAPI, Request, Response
from PIL import Image
from starlette.types import ASGIApp

from lasro import wire
from lasro.errors import BudgetError, ConfigError, ConflictError, NotFoundError, WireError
from lasro.redis_store import keys
from lasro.redis_store.connection import connect
from lasro.redis_store.sample_stream import SampleStream
from lasro.wire import GroupState, GroupSubmission, Protocol, RewardSpec, ScoreRequest, Status
from lasro_client.services.reward_client import RewardClient
from lasro_reward_api.app import create_app
from lasro_reward_api.settings import RewardApiSettings


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def red(image: bytes) -> float:
    pixel: Any = Image.open(io.BytesIO(image)).getpixel((0, 0))
    return pixel[0] / 255


class RedScorer:
    """Scores an image by its redness, in the native protocol and in Flow-Factory's; remembers what it was sent."""

    def __init__(self) -> None:
        self.app, self.batches, self.headers = FastAPI(), [], {}
        self.app.post("/native")(self.native)
        self.app.post("/compute")(self.compute)

    @property
    def images(self) -> int:
        return sum(len(batch["prompts"]) for batch in self.batches)

    async def native(self, request: Request) -> Response:
        self.headers = dict(request.headers)
        if request.headers["content-type"] == wire.MSGPACK_TYPE:
            batch = wire.from_msgpack(wire.NativeRequest, await request.body())
            self.batches.append(batch.model_dump())
            body = msgpack.packb({"scores": [red(image) for image in batch.images]})
            return Response(body, media_type=wire.MSGPACK_TYPE)
        batch = await request.json()
        self.batches.append(batch)
        scores = [red(base64.b64decode(image)) for image in batch["images"]]
        return Response(json.dumps({"scores": scores}), media_type="application/json")

    async def compute(self, request: Request) -> dict[str, list[float]]:
        batch = await request.json()
        self.batches.append({"prompts": batch["prompt"]})
        return {"rewards": [red(base64.b64decode(image)) for image in batch["image"]]}


@pytest.fixture
def scorer(serve: Callable[[ASGIApp], str]) -> tuple[RedScorer, str]:
    scorer = RedScorer()
    return scorer, serve(scorer.app)


@pytest.fixture
def spec(scorer: tuple[RedScorer, str]) -> RewardSpec:
    """A reward with a name of its own."""
    return RewardSpec(name=f"r-{uuid.uuid4().hex}", url=f"{scorer[1]}/native", protocol=Protocol.NATIVE)


def group(reward: str, group_id: str = "g", limit: int | None = None, shade: int = 0) -> GroupSubmission:
    return GroupSubmission(
        group_id=group_id,
        round=0,
        index=0,
        prompt="a red square",
        metadata={"shapes": 1},
        policy_version=0,
        rewards=[reward],
        stages=[1, 1, 2, 2],
        images=[png(shade + 1), png(shade + 2), png(shade + 3), png(shade + 4)],
        latents=wire.pack_tensors({"latents": np.zeros((4, 4, 2, 2), np.float16)}),
        max_reward_calls=limit,
    )


def test_importing_the_service_imports_no_torch() -> None:
    """Bug: the reward API takes seconds and a gigabyte to start for a library it never uses."""
    code = "import sys, lasro_reward_api.app, lasro_client.services.reward_client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_reward_is_registered_changed_and_forgotten(api: RewardClient, spec: RewardSpec) -> None:
    """Bug: a change keeps its version, so that scores of two scorers are mixed under one."""
    assert api.register(spec).version == 1
    with pytest.raises(ConflictError, match="name is in use"):
        api.register(spec)
    changed = api.register(spec.model_copy(update={"max_batch": 2}), replace=True)
    assert (changed.version, changed.max_batch) == (2, 2)
    assert spec.name in [found.name for found in api.rewards()]
    assert api.reward(spec.name) == changed
    api.remove(spec.name)
    with pytest.raises(NotFoundError, match="not registered"):
        api.reward(spec.name)
    with pytest.raises(NotFoundError):
        api.remove(spec.name)


def test_secrets_reach_the_endpoint_and_nobody_else(
    api: RewardClient, url: str, spec: RewardSpec, scorer: tuple[RedScorer, str]
) -> None:
    """Bug: whoever may list rewards reads the keys of paid scorers."""
    secret = spec.model_copy(update={"secret": "s3cr3t", "headers": {"X-Tenant": "t3n4nt"}})
    info = api.register(secret)
    assert (info.has_secret, info.header_names) == (True, ["X-Tenant"])
    assert api.probe(spec.name).status is Status.OK
    assert scorer[0].headers["authorization"] == "Bearer s3cr3t"
    assert scorer[0].headers["x-tenant"] == "t3n4nt"
    shown = httpx.get(f"{url}/v1/rewards").text + httpx.get(f"{url}/v1/rewards/{spec.name}").text
    assert "s3cr3t" not in shown
    assert "t3n4nt" not in shown


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"protocol": "unirl"}, "mapping.reward: got nothing, expected a value"),
        ({"url": "ftp://host/"}, "got scheme 'ftp'"),
        ({"url": "http://user:pw@host/"}, "user name or password"),
        ({"url": "http://host:99999/"}, "expected http(s)://HOST"),
        ({"headers": {"Host": "other"}}, "'Host' cannot be set"),
        ({"headers": {"X-A": "a\r\nB: c"}}, "not printable ASCII"),
        ({"mapping": {"encoding": "pickle"}}, "expected one of json, msgpack"),
        ({"range": [1, 0]}, "low < high"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_what_could_not_be_called_is_refused_at_registration(url: str, change: dict[str, Any], reason: str) -> None:
    """Bug: a bad registration is accepted and every later score fails."""
    body = {"name": "refused", "url": "http://127.0.0.1:1/", "protocol": "native"} | change
    answer = httpx.post(f"{url}/v1/rewards", json=body)
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert reason in answer.json()["detail"]
    assert httpx.get(f"{url}/v1/rewards/refused").status_code == 404


def test_put_wants_the_name_of_the_path(url: str) -> None:
    """Bug: PUT under one name registers another."""
    body = {"name": "one", "url": "http://127.0.0.1:1/", "protocol": "native"}
    assert httpx.put(f"{url}/v1/rewards/two", json=body).status_code == 422
    assert httpx.put(f"{url}/v1/rewards/one", json=body).status_code in (200, 201)


@pytest.mark.parametrize("protocol", ["json", "msgpack", "flow-factory"])
def test_every_protocol_scores_in_request_order(
    api: RewardClient, spec: RewardSpec, scorer: tuple[RedScorer, str], protocol: str
) -> None:
    """Bug: batches that come back out of order give images each other's scores."""
    change: dict[str, Any] = {"mapping": {"encoding": protocol}, "max_batch": 3, "concurrency": 4}
    if protocol == "flow-factory":
        change |= {"mapping": None, "protocol": Protocol.FLOW_FACTORY, "url": scorer[1]}
    api.register(spec.model_copy(update=change))
    shades = [7, 200, 30, 99, 5, 250, 64]
    request = ScoreRequest(
        prompts=[f"p{shade}" for shade in shades],
        images=[png(shade) for shade in shades],
        rewards=[spec.name],
        metadata=[{"n": shade} for shade in shades],
        objective={spec.name: 2.0},
    )
    items = api.score(request).items
    assert [item.scores[spec.name].score for item in items] == [shade / 255 for shade in shades]
    assert [item.total for item in items] == [2 * shade / 255 for shade in shades]
    assert sorted(len(batch["prompts"]) for batch in scorer[0].batches) == [1, 3, 3]


def test_json_and_msgpack_say_the_same(url: str, api: RewardClient, spec: RewardSpec) -> None:
    """Bug: the two encodings of one schema drift apart."""
    api.register(spec)
    request = ScoreRequest(prompts=["p"], images=[png(50)], rewards=[spec.name])
    by_json = httpx.post(f"{url}/v1/score", json=request.model_dump(mode="json")).json()
    assert by_json["items"][0]["scores"][spec.name]["score"] == 50 / 255
    by_msgpack = api.score(request)
    assert by_msgpack.items[0].total == by_json["items"][0]["total"]


def test_replies_are_whole_messages(url: str, api: RewardClient, spec: RewardSpec) -> None:
    """Bug: a reply put together by hand, unchecked, lacks a field of the schema or says what the schema forbids."""
    api.register(spec)
    unreachable = RewardSpec(name=f"r-{uuid.uuid4().hex}", url="http://127.0.0.1:9/", protocol=Protocol.NATIVE)
    api.register(unreachable)
    request = ScoreRequest(prompts=["p", "q"], images=[png(1), png(2)], rewards=[spec.name, unreachable.name])
    api.score(ScoreRequest(prompts=["p"], images=[png(1)], rewards=[spec.name]))
    text = httpx.post(
        f"{url}/v1/score", content=request.model_dump_json(), headers={"Content-Type": "application/json"}
    )
    assert text.status_code == 200, text.text
    kept, new = wire.from_json(wire.ScoreReply, text.content).items
    assert [kept.scores[spec.name].attempts, new.scores[spec.name].attempts] == [0, 1], "one known, one not"
    assert kept.scores[unreachable.name].status is Status.UNREACHABLE
    assert text.json() == wire.ScoreReply(items=[kept, new]).model_dump(mode="json")


def test_a_known_image_costs_nothing_until_something_changes(
    api: RewardClient, spec: RewardSpec, scorer: tuple[RedScorer, str]
) -> None:
    """Bug: the cache answers for another prompt, metadata or version; or never answers."""
    api.register(spec)
    request = ScoreRequest(prompts=["p"], images=[png(50)], rewards=[spec.name])
    first, second = api.score(request), api.score(request)
    assert (first.items[0].scores[spec.name].attempts, second.items[0].scores[spec.name].attempts) == (1, 0)
    assert scorer[0].images == 1
    api.score(request.model_copy(update={"prompts": ["q"]}))
    api.score(request.model_copy(update={"metadata": [{"a": 1}]}))
    assert scorer[0].images == 3
    api.register(spec.model_copy(update={"max_batch": 2}), replace=True)
    assert api.score(request).items[0].scores[spec.name].version == 2
    assert scorer[0].images == 4
    api.register(spec.model_copy(update={"cache": False}), replace=True)
    api.score(request)
    api.score(request)
    assert scorer[0].images == 6


def test_a_fresh_score_is_asked_for_and_not_kept(
    api: RewardClient, spec: RewardSpec, scorer: tuple[RedScorer, str]
) -> None:
    """Bug: an audit measures the cache instead of the reward, or a noisy measurement replaces what a run relies on."""
    api.register(spec)
    request = ScoreRequest(prompts=["p"], images=[png(50)], rewards=[spec.name])
    fresh = request.model_copy(update={"fresh": True})
    for _ in range(2):
        assert api.score(fresh).items[0].scores[spec.name].attempts == 1
    assert scorer[0].images == 2
    assert api.score(request).items[0].scores[spec.name].attempts == 1, "a fresh score was kept"
    assert api.score(fresh).items[0].scores[spec.name].attempts == 1, "a kept score was used"
    assert api.score(request).items[0].scores[spec.name].attempts == 0


def test_the_images_of_one_call_are_told(api: RewardClient, spec: RewardSpec) -> None:
    """Bug: a judge that is asked image by image is told as one that takes 32, and a run's time guessed too short."""
    assert api.register(spec.model_copy(update={"max_batch": 5})).images_per_call == 5
    judge = {"protocol": Protocol.OPENAI_CHAT, "mapping": {"model": "m"}}
    assert api.register(spec.model_copy(update=judge), replace=True).images_per_call == 1
    assert {found.name: found.images_per_call for found in api.rewards()}[spec.name] == 1


def test_repeats_are_averaged(api: RewardClient, spec: RewardSpec, scorer: tuple[RedScorer, str]) -> None:
    """Bug: a noisy scorer is asked once however many repeats it was registered with."""
    api.register(spec.model_copy(update={"repeats": 3}))
    reply = api.score(ScoreRequest(prompts=["p"], images=[png(51)], rewards=[spec.name]))
    assert reply.items[0].scores[spec.name].score == pytest.approx(0.2)
    assert scorer[0].images == 3


def test_a_total_is_missing_with_any_of_its_parts(api: RewardClient, spec: RewardSpec) -> None:
    """Bug: a failed component counts as 0 in the total."""
    down = RewardSpec(name=f"{spec.name[:40]}-down", url="http://127.0.0.1:1/", protocol=Protocol.NATIVE)
    api.register(spec)
    api.register(down)
    request = ScoreRequest(prompts=["p"], images=[png(51)], rewards=[spec.name, down.name])
    (item,) = api.score(request).items
    assert item.total is None
    assert item.scores[spec.name].score == pytest.approx(0.2)
    assert item.scores[down.name].status is Status.UNREACHABLE
    (item,) = api.score(request.model_copy(update={"objective": {spec.name: 1.0}})).items
    assert item.total == pytest.approx(0.2)


def test_totals_follow_the_objective(url: str, api: RewardClient, spec: RewardSpec) -> None:
    """Bug: the API adds where it was asked to multiply, or gives a total to what a guard vetoes."""
    guard = spec.model_copy(update={"name": f"{spec.name[:40]}-guard"})
    api.register(spec)
    api.register(guard)
    asked = {"prompts": ["p"] * 3, "images": [png(51), png(204), png(102)], "rewards": [spec.name, guard.name]}

    def items(**objective: Any) -> list[wire.ScoredItem]:
        return api.score(ScoreRequest.model_validate(asked | objective)).items

    weights = {spec.name: 2.0, guard.name: 1.0}
    assert [item.total for item in items(combine="product")] == pytest.approx([0.2**2, 0.8**2, 0.4**2])
    assert [item.total for item in items(objective=weights, combine="minimum")] == pytest.approx([0.2, 0.8, 0.4])
    guarded = items(objective={spec.name: 2.0}, floors={guard.name: 0.4})
    assert [item.total for item in guarded] == [None, pytest.approx(1.6), pytest.approx(0.8)]
    assert [item.vetoed for item in guarded] == [True, False, False]
    assert all(item.scores[guard.name].status is Status.OK for item in guarded)


def test_objectives_without_meaning_are_refused(
    url: str, api: RewardClient, spec: RewardSpec, serve: Callable[[ASGIApp], str]
) -> None:
    """Bug: two bad rewards multiply to a good total, or end in a 500 that names no reward."""
    app = FastAPI()

    @app.post("/")
    async def minus(request: Request) -> dict[str, list[float]]:
        return {"scores": [-0.5 for _ in (await request.json())["prompts"]]}

    name = spec.name
    api.register(spec.model_copy(update={"url": serve(app)}))
    body = {"prompts": ["p"], "images": [base64.b64encode(png(1)).decode()], "rewards": [name]}
    for objective, reason in (
        ({"combine": "product"}, f"reward {name}: got -0.5, expected at least 0 in a product"),
        ({"combine": "product", "objective": {name: -1}}, f"weight of {name}: got -1, expected at least 0"),
        ({"floors": {"other": 0.5}}, "floors: got ['other'], expected only rewards of the objective"),
        ({"combine": "mean"}, "combine"),
    ):
        answer = httpx.post(f"{url}/v1/score", json=body | objective)
        assert answer.status_code == 422
        assert reason in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{", "application/json", 422),
        (b"\xc1", "application/msgpack", 422),
        (b'{"prompts": ["p"], "images": ["not base64!"], "rewards": ["r"]}', "application/json", 422),
        (b'{"prompts": ["p", "q"], "images": ["aGk="], "rewards": ["r"]}', "application/json", 422),
        (b'{"prompts": ["p"], "images": ["aGk="], "rewards": ["no-such-reward"]}', "application/json", 404),
        (b'{"prompts": ["p"], "images": ["aGk="], "rewards": ["../etc"]}', "application/json", 422),
    ],
)
def test_bad_requests_are_problems(url: str, body: bytes, content_type: str, status: int) -> None:
    """Bug: malformed bodies answer 500, or an answer that is not problem+json."""
    answer = httpx.post(f"{url}/v1/score", content=body, headers={"Content-Type": content_type})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status


def test_metadata_that_json_cannot_hold_is_refused(api: RewardClient, spec: RewardSpec) -> None:
    """Bug: NaN in msgpack metadata breaks the JSON sent to the endpoint."""
    api.register(spec)
    with pytest.raises(WireError, match="metadata"):
        api.score(ScoreRequest(prompts=["p"], images=[png(1)], rewards=[spec.name], metadata=[float("nan")]))


def test_a_group_is_scored_once_and_delivered(
    api: RewardClient, spec: RewardSpec, scorer: tuple[RedScorer, str], redis_url: str
) -> None:
    """Bug: a group posted again is scored and delivered again, or its images stay in Redis."""
    run, submission = f"run-{spec.name[:40]}", group(spec.name)
    api.register(spec)
    assert api.submit(run, submission).state in GroupState
    status = api.group(run, "g", wait_s=20)
    assert status.state is GroupState.SCORED
    assert status.reward_calls == 4
    assert [item.scores[spec.name].score for item in status.items or []] == [n / 255 for n in (1, 2, 3, 4)]
    assert api.submit(run, submission).state is GroupState.SCORED
    with pytest.raises(ConflictError, match="other content"):
        api.submit(run, submission.model_copy(update={"prompt": "something else"}))
    assert scorer[0].images == 4
    assert scorer[0].batches[0]["metadata"] == [{"shapes": 1}] * 4
    with connect(redis_url) as client:
        ((_, sample),) = SampleStream(client, run).read(10)
        assert client.hexists(keys.group(run, "g"), "payload") == 0
    assert sample.rewards == {spec.name: [n / 255 for n in (1, 2, 3, 4)]}
    assert sample.latents == submission.latents
    assert sample.versions == {spec.name: 1}


def test_an_unknown_group_and_an_unknown_reward_are_not_found(api: RewardClient) -> None:
    """Bug: the client waits for what the service never heard of."""
    with pytest.raises(NotFoundError, match="submit it again"):
        api.group("no-run", "g", wait_s=10)
    with pytest.raises(NotFoundError, match="not registered"):
        api.submit("no-run", group("no-such-reward"))


def test_a_failing_reward_still_finishes_the_group(api: RewardClient, spec: RewardSpec, redis_url: str) -> None:
    """Bug: a scorer that is down stops the run, or delivers zeros."""
    run = f"run-{spec.name[:40]}"
    api.register(spec.model_copy(update={"url": "http://127.0.0.1:1/"}))
    status = api.wait_scored(run, [group(spec.name)], timeout_s=30)["g"]
    assert {item.scores[spec.name].status for item in status.items or []} == {Status.UNREACHABLE}
    with connect(redis_url) as client:
        ((_, sample),) = SampleStream(client, run).read(10)
    assert sample.rewards == {spec.name: [None] * 4}


def test_the_budget_is_enforced_before_any_call(
    api: RewardClient, spec: RewardSpec, scorer: tuple[RedScorer, str]
) -> None:
    """Bug: a group over the limit is half scored, or cache hits eat the budget."""
    run = f"run-{spec.name[:40]}"
    api.register(spec)
    api.wait_scored(run, [group(spec.name, "a", limit=6)], timeout_s=20)
    with pytest.raises(BudgetError, match="4 are spent"):
        api.submit(run, group(spec.name, "b", limit=6, shade=100))
    assert scorer[0].images == 4
    with pytest.raises(NotFoundError):
        api.group(run, "b")
    again = api.wait_scored(run, [group(spec.name, "c", limit=8)], timeout_s=20)["c"]
    assert (again.reward_calls, scorer[0].images) == (4, 4)
    more = api.wait_scored(run, [group(spec.name, "b", limit=8, shade=100)], timeout_s=20)["b"]
    assert (more.reward_calls, scorer[0].images) == (8, 8)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"latents": b"12345678junk"}, "safetensors"),
        ({"latents": wire.pack_tensors({"latents": np.zeros((3, 4, 2, 2), np.float16)})}, "[4, C, H, W]"),
        ({"latents": wire.pack_tensors({"latents": np.zeros((4, 4, 2), np.float16)})}, "[4, C, H, W]"),
        ({"latents": wire.pack_tensors({"latents": np.full((4, 4, 2, 2), np.nan, np.float16)})}, "NaN"),
        ({"latents": wire.pack_tensors({"other": np.zeros((4, 4, 2, 2), np.float16)})}, "one named 'latents'"),
        ({"images": [b"x"] * 4}, "images[0]"),
        ({"metadata": float("inf")}, "metadata"),
    ],
)
def test_a_group_that_could_not_be_trained_on_is_refused(
    api: RewardClient, spec: RewardSpec, change: dict[str, Any], reason: str
) -> None:
    """Bug: bad latents are found out in the trainer, after the rewards were paid for."""
    api.register(spec)
    with pytest.raises(WireError) as caught:
        api.submit("refused", group(spec.name).model_copy(update=change))
    assert reason in str(caught.value)


def test_keys_are_wanted_where_one_is_set(redis_url: str, serve: Callable[[ASGIApp], str]) -> None:
    """Bug: an API with a key answers without it."""
    settings = RewardApiSettings(redis_url=redis_url, api_key="k")  # pyright: ignore[reportArgumentType]
    guarded = serve(create_app(settings))
    assert httpx.get(f"{guarded}/v1/rewards").status_code == 401
    with RewardClient(guarded, api_key="k") as client:
        assert client.ready()
        client.rewards()


def test_without_redis_the_service_says_so() -> None:
    """Bug: the service starts and fails at the first request."""
    with pytest.raises(ConfigError, match="LASRO_REDIS_URL"):
        create_app(RewardApiSettings(redis_url=None))
    with pytest.raises(ConfigError, match="LASRO_REDIS_URL"):
        create_app(RewardApiSettings(redis_url="http://x"))  # pyright: ignore[reportArgumentType]


def test_redis_out_of_memory_is_a_storage_error(api: RewardClient, spec: RewardSpec, redis_client: redis.Redis) -> None:
    """Bug: a full Redis answers 500 with no word of why."""
    api.register(spec)
    redis_client.config_set("maxmemory", "1")
    try:
        with pytest.raises(OSError, match="takes no writes"):
            api.submit("full", group(spec.name))
    finally:
        redis_client.config_set("maxmemory", "0")
