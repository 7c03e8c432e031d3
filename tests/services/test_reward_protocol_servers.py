"""Rewards behind servers of other projects, end to end: registered, scored, and failing in each one's own way."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from protocol_servers import SCORES, SHADES, Servers, png
from starlette.types import ASGIApp
from typer.testing import CliRunner, Result

from lasro.errors import ConfigError
from lasro.redis_store import keys
from lasro.redis_store.connection import connect
from lasro.wire import Protocol, RewardSpec, RewardValue, ScoreRequest, Status
from lasro_client.cli.rewards import rewards_app
from lasro_client.services.reward_client import RewardClient

TENSORS = [{"name": "IMAGE", "holds": "images"}, {"name": "PROMPT", "holds": "prompts"}]
EACH = {"caption": "{{prompt}}", "picture": "data:{{image_type}};base64,{{image}}", "level": "{{metadata.level}}"}
CASES: dict[str, tuple[Protocol, str, dict[str, Any]]] = {
    "native": (Protocol.NATIVE, "/", {}),
    "flow-factory": (Protocol.FLOW_FACTORY, "", {}),
    "unirl": (Protocol.UNIRL, "", {"reward": "red"}),
    "judge": (Protocol.OPENAI_CHAT, "/v1", {"model": "red-vl"}),
    "logprobs": (Protocol.OPENAI_CHAT, "/v1", {"model": "red-vl", "answers": {"yes": 1, "no": 0}}),
    "oip": (Protocol.OIP_V2, "", {"model": "red", "inputs": TENSORS, "output": "SCORE", "column": True}),
    "mapping": (
        Protocol.MAPPING,
        "/rank",
        {"request": {"items": {"$each": EACH}}, "scores": "items[*].value", "errors": "items[*].why"},
    ),
    "mapping-one": (Protocol.MAPPING, "/rank", {"request": {"items": [EACH]}, "scores": "items[0].value"}),
}
ONE_IMAGE = ("judge", "logprobs", "mapping-one")


@pytest.fixture(scope="module")
def running(serve: Callable[[ASGIApp], str]) -> tuple[Servers, str]:
    servers = Servers()
    return servers, serve(servers.app)


@pytest.fixture
def servers(running: tuple[Servers, str]) -> Servers:
    servers, _ = running
    servers.fault, servers.most_at_once = None, 0
    servers.refusals = servers.refused = 0
    servers.most_logprobs, servers.refused_logprobs = 20, 0
    servers.calls.clear()
    return servers


def spec(running: tuple[Servers, str], case: str, **settings: Any) -> RewardSpec:
    protocol, path, mapping = CASES[case]
    url = running[1] + path
    return RewardSpec(name=f"p-{uuid.uuid4().hex}", url=url, protocol=protocol, mapping=mapping, **settings)


def score(
    api: RewardClient, reward: RewardSpec, prompts: list[str], metadata: list[Any] | None = None
) -> list[RewardValue]:
    images = [png(shade) for shade in SHADES[: len(prompts)]]
    metadata = metadata or [{"level": 1}] * len(prompts)
    reply = api.score(ScoreRequest(prompts=prompts, images=images, rewards=[reward.name], metadata=metadata))
    for item in reply.items:
        assert (item.total is None) == (item.scores[reward.name].status is not Status.OK)
    return [item.scores[reward.name] for item in reply.items]


@pytest.mark.parametrize("case", sorted(CASES))
def test_servers_of_other_projects_score_in_request_order(
    api: RewardClient, running: tuple[Servers, str], servers: Servers, case: str
) -> None:
    """Bug: a server written from its project's own files does not plug in, or images get each other's scores."""
    reward = spec(running, case, max_batch=2, concurrency=3)
    api.register(reward)
    found = score(api, reward, ["p"] * 5)
    assert [one.error for one in found] == [None] * 5
    assert [one.score for one in found] == pytest.approx(SCORES)
    assert sorted(servers.calls) == ([1] * 5 if case in ONE_IMAGE else [1, 2, 2])
    assert api.probe(reward.name).status is (Status.OK if "mapping" not in case else Status.REJECTED)


def test_a_judge_gets_one_image_per_call_and_no_more_calls_than_allowed(
    api: RewardClient, running: tuple[Servers, str], servers: Servers
) -> None:
    """Bug: with the default max_batch a judge is sent 32 images and answers with one number, or all calls at once."""
    reward = spec(running, "judge", concurrency=2)
    api.register(reward)
    assert [one.score for one in score(api, reward, ["p"] * 5)] == pytest.approx(SCORES)
    assert servers.calls == [1] * 5
    assert servers.most_at_once == 2


@pytest.mark.parametrize("case", ONE_IMAGE)
def test_a_protocol_of_one_image_repeats_and_retries_image_by_image(
    api: RewardClient, running: tuple[Servers, str], servers: Servers, case: str
) -> None:
    """Bug: repeats or a retry of one image send another's again, or mix up whose score is whose."""
    reward = spec(running, case, repeats=2, concurrency=1)
    api.register(reward)
    servers.refusals = 1
    found = score(api, reward, ["p"] * 5)
    assert [one.score for one in found] == pytest.approx(SCORES)
    assert sorted(one.attempts for one in found) == [2, 2, 2, 2, 3]
    assert servers.calls == [1] * 10


@pytest.mark.parametrize("case", ONE_IMAGE)
def test_a_protocol_of_one_image_stops_calling_what_keeps_failing(
    api: RewardClient, running: tuple[Servers, str], servers: Servers, case: str
) -> None:
    """Bug: with one image per call a broken judge is called for each image of the run, three times over."""
    reward = spec(running, case, concurrency=1)
    api.register(reward)
    servers.refusals = 1000
    assert {one.status for one in score(api, reward, ["p"] * 3)} == {Status.HTTP_ERROR}
    found = score(api, reward, ["p"] * 3)
    assert [one.status for one in found] == [Status.HTTP_ERROR, Status.HTTP_ERROR, Status.UNAVAILABLE]
    assert "circuit open after 5 failures in a row" in (found[2].error or "")
    assert servers.refused == 15


@pytest.mark.parametrize(
    ("case", "prompt", "status", "reason"),
    [
        ("unirl", "fail", Status.REJECTED, "CUDA out of memory"),
        ("unirl", "nan", Status.REJECTED, "].red: null, the service's mark"),
        ("judge", "fail", Status.BAD_REPLY, "got 'I am sorry, but I cannot rate this.', expected a number"),
        ("judge", "too large", Status.HTTP_ERROR, "HTTP 400"),
        ("mapping", "fail", Status.REJECTED, "no face"),
    ],
)
def test_an_item_that_fails_leaves_the_others_alone(
    api: RewardClient,
    running: tuple[Servers, str],
    servers: Servers,
    case: str,
    prompt: str,
    status: Status,
    reason: str,
) -> None:
    """Bug: one item's failure becomes a number, or fails its batch, or is cached."""
    reward = spec(running, case)
    api.register(reward)
    for _ in range(2):
        found = score(api, reward, ["p", prompt, "p"])
        assert [one.status for one in found] == [Status.OK, status, Status.OK]
        assert (found[1].score, found[0].score, found[2].score) == (None, 0.2, 0.0)
        assert reason in (found[1].error or "")
    assert sum(servers.calls) == 4


def test_a_judge_that_gives_fewer_logprobs_is_asked_for_fewer(
    api: RewardClient, running: tuple[Servers, str], servers: Servers
) -> None:
    """Bug: behind a server that gives 5 logprobs and says so, no image ever had a score."""
    reward = spec(running, "logprobs", concurrency=2)
    api.register(reward)
    servers.most_logprobs = 5
    found = score(api, reward, ["p"] * 5)
    assert [one.score for one in found] == pytest.approx(SCORES)
    assert servers.refused_logprobs == sum(one.attempts - 1 for one in found)
    assert 1 <= servers.refused_logprobs <= 4  # calls in flight, and those encoded ahead for the next slots
    before = servers.refused_logprobs
    servers.most_logprobs = 4
    api.score(ScoreRequest(prompts=["q"], images=[png(1)], rewards=[reward.name]))
    assert servers.refused_logprobs == before + 1
    api.score(ScoreRequest(prompts=["r"], images=[png(1)], rewards=[reward.name]))
    assert servers.refused_logprobs == before + 1


CHAT = '{"choices": [{"message": {"content": %s}, "finish_reason": "stop"}]}'
OIP = '{"outputs": [{"name": "SCORE", "datatype": "%s", "shape": %s, "data": %s}]}'


@pytest.mark.parametrize(
    ("case", "fault", "reason"),
    [
        ("unirl", '{"detail": "unknown reward"}', "no list 'results'"),
        ("unirl", '{"results": [{"red": {"red": 1}}]}', "results: got 1, expected one per image (3)"),
        ("unirl", '{"results": [{"red": {"red": NaN}}, {}, {}]}', "got nan, expected a finite number"),
        ("unirl", '{"results": [{"red": {"red": "0.5"}}, {}, {}]}', "got str, expected a number"),
        ("judge", '{"error": {"message": "loading model", "code": 503}}', "reports an error instead of an answer"),
        ("judge", CHAT % '"7, since the colours are right"', "expected a number and nothing else"),
        ("judge", CHAT % '"NaN"', "expected a number and nothing else"),
        ("judge", CHAT % '"70"', "got 70, expected a number in [0, 10]"),
        ("judge", CHAT % "7", "content: got int, expected text"),
        ("judge", "data: [DONE]", "that are not JSON"),
        ("logprobs", CHAT % '"yes"', "logprobs: got none"),
        ("oip", '{"error": "failed to load model"}', "reports an error instead of outputs"),
        ("oip", OIP % ("FP32", "[2, 1]", "[1, 2]"), "got shape [2, 1], expected [3] or [3, 1]"),
        ("oip", OIP % ("FP32", "[3]", "[1, 2]"), "got 2 elements, expected one per image (3)"),
        ("oip", OIP % ("FP32", "[3]", "[1, NaN, 2]"), "SCORE[1]: got nan"),
        ("oip", OIP % ("BYTES", "[3]", '["1", "2", "3"]'), "got datatype BYTES"),
        ("mapping", '{"error": "no quota"}', "scores: got NoneType where mapping.scores leads"),
        ("mapping", '{"items": [{"value": 1}, {"value": 2}]}', "scores: got 2, expected one per image (3)"),
        ("mapping", '{"items": [{"value": 1}, {}, {"value": 2}]}', "scores[1]: got NoneType"),
        ("mapping-one", '{"items": [{"value": "high"}]}', "got str, expected a number"),
    ],
)
def test_a_reply_with_200_that_holds_no_scores_is_a_bad_reply(
    api: RewardClient, running: tuple[Servers, str], servers: Servers, case: str, fault: str, reason: str
) -> None:
    """Bug: an error, a wrong count, NaN or words behind status 200 become a number that the run trains on."""
    reward = spec(running, case)
    api.register(reward)
    servers.fault = fault
    found = score(api, reward, ["p"] * 3)
    assert {(one.status, one.score) for one in found} == {(Status.BAD_REPLY, None)}
    assert reason in (found[0].error or "")
    servers.fault = None
    assert [one.status for one in score(api, reward, ["p"] * 3)] == [Status.OK] * 3


@pytest.mark.parametrize(
    ("case", "metadata", "reason", "calls"),
    [
        ("unirl", [None, [1], None, None], "metadata: got list, expected an object or null", [1, 2]),
        ("mapping", [{"level": 1}, {}, {"level": 2}, {"level": 3}], "metadata.level: got nothing there", [1, 2]),
        ("mapping-one", [{"level": 1}, {}, {"level": 2}, {"level": 3}], "metadata.level: got nothing there", [1] * 3),
    ],
)
def test_metadata_that_a_protocol_cannot_carry_rejects_its_items(
    api: RewardClient,
    running: tuple[Servers, str],
    servers: Servers,
    case: str,
    metadata: list[Any],
    reason: str,
    calls: list[int],
) -> None:
    """Bug: such metadata answers 422 or 500 for the whole request, rejects the images beside it, or is sent."""
    reward = spec(running, case)
    api.register(reward)
    found = score(api, reward, ["p"] * 4, metadata)
    assert [one.score for one in found] == [0.2, None, 0.0, 1.0]
    assert (found[1].status, found[1].attempts) == (Status.REJECTED, 0)
    assert reason in (found[1].error or "")
    assert sorted(servers.calls) == calls


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(
    ("protocol", "mapping", "reason"),
    [
        ("unirl", None, "mapping.reward: got nothing, expected a value"),
        (
            "openai-chat",
            {"model": "m", "rubrik": ""},
            "mapping.rubrik: got an unknown setting, expected only model, rubric",
        ),
        ("oip-v2", {"model": "a/b"}, "mapping.model: got 'a/b', expected text that matches"),
        ("mapping", {"request": "{{image}}", "scores": "a b"}, "mapping.scores: got 'a b', expected a path like"),
    ],
)
def test_settings_are_checked_when_a_reward_is_registered(
    url: str, method: str, protocol: str, mapping: Any, reason: str
) -> None:
    """Bug: a misspelt setting is stored, and every score fails or is made with the default."""
    body = {"name": "never", "url": "http://127.0.0.1:1/", "protocol": protocol, "mapping": mapping}
    answer = httpx.request(method, f"{url}/v1/rewards" + ("/never" if method == "PUT" else ""), json=body)
    assert answer.status_code == 422
    assert reason in answer.json()["detail"]
    assert httpx.get(f"{url}/v1/rewards/never").status_code == 404


@pytest.mark.parametrize("case", ["judge", "mapping"])
def test_settings_of_another_version_make_the_reward_unavailable(
    api: RewardClient, running: tuple[Servers, str], servers: Servers, redis_url: str, case: str
) -> None:
    """Bug: a reward that a newer API registered answers 500 for the whole request from an older process."""
    reward = spec(running, case)
    newer = reward.model_copy(update={"mapping": {"request": 1, "added-later": True}})
    with connect(redis_url) as client:
        client.hset(keys.REWARDS, reward.name, f"1 {newer.model_dump_json()}")
    found = score(api, reward, ["p"] * 3)
    assert {one.status for one in found} == {Status.UNAVAILABLE}
    assert "mapping.added-later: got an unknown setting" in (found[0].error or "")
    assert servers.calls == []


def test_the_command_line_passes_protocol_settings(
    url: str, running: tuple[Servers, str], servers: Servers, tmp_path: Path
) -> None:
    """Bug: `lasro rewards add` can register only protocols without settings, or takes what is no object."""
    settings = tmp_path / "settings.json"
    settings.write_text('{"model": "red-vl"}')
    (tmp_path / "list.json").write_text("[]")

    def lasro(*arguments: str) -> Result:
        return CliRunner().invoke(rewards_app, [*arguments, "--reward-api", url])

    add = ("add", "judge", f"{running[1]}/v1", "--protocol", "openai-chat", "--replace", "--json", "--mapping")
    for given in (str(settings), '{"model": "red-vl"}'):
        done = lasro(*add, given)
        assert done.exception is None
        assert json.loads(done.stdout)["mapping"] == {"model": "red-vl"}
    assert lasro("test", "judge").exit_code == 0
    listed = str(tmp_path / "list.json")
    for given, part in (("{model}", "not JSON"), (listed, "got a JSON list"), ("no.json", "no.json: cannot be read")):
        failed = lasro(*add, given)
        assert isinstance(failed.exception, ConfigError)
        assert part in str(failed.exception)
