"""Every way in which an endpoint, a registration or a request can be at fault, each with what it must come to, over
real HTTP; and docs/faults.md, which tells of it."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from faulty_scorer import PLACES, REPLIES, Fault, endpoints, pixel_bomb, png
from pages import check_page, table
from PIL import Image
from refusals import CALLING, REGISTERING, SCORING, SECRET, Refusal, Servers
from starlette.types import ASGIApp

from lasro.errors import LasroError, WireError
from lasro.reward_sdk import RewardEnvironment, create_reward_app, reward
from lasro.service.problem import HTTP_PROBLEMS
from lasro.wire import Protocol, RewardSpec, RewardValue, ScoreRequest, Status
from lasro_client.services.http import KINDS
from lasro_client.services.reward_client import RewardClient
from lasro_reward_api.app import create_app
from lasro_reward_api.settings import RewardApiSettings

Serve = Callable[[ASGIApp], str]
IMAGES = [png(shade) for shade in (10, 20, 30)]
# Pillow only warns of such a picture, and only the tests make errors of warnings; the API looks for itself.
pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
REFUSALS = [*SCORING, *REGISTERING, *CALLING]


@reward
def width(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float]:
    return [float(image.width) for image in images]


@pytest.fixture(scope="module")
def start(redis_url: str, serve: Serve) -> Callable[..., str]:
    def start(**settings: Any) -> str:
        given = {"redis_url": redis_url, "allowed_networks": "127.0.0.0/8", "max_reply_bytes": 1 << 20} | settings
        return serve(create_app(RewardApiSettings(**given)))

    return start


@pytest.fixture(scope="module")
def api(start: Callable[..., str]) -> Iterator[RewardClient]:
    with RewardClient(start()) as client:
        yield client


@pytest.fixture(scope="module")
def private() -> Iterator[socket.socket]:
    """Where the scorer's redirect leads; nobody may ever connect to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


@pytest.fixture(scope="module")
def scorer(serve: Serve, private: socket.socket) -> tuple[str, FastAPI]:
    app = endpoints(f"http://127.0.0.1:{private.getsockname()[1]}/")
    return serve(app), app


def score(api: RewardClient, url: str, **settings: object) -> list[RewardValue]:
    spec = RewardSpec(name="fault", url=url, protocol=Protocol.NATIVE, cache=False, **settings)  # pyright: ignore[reportArgumentType]
    api.register(spec, replace=True)
    reply = api.score(ScoreRequest(prompts=["p"] * 3, images=IMAGES, rewards=["fault"]))
    for item in reply.items:
        assert (item.total is None) == (item.scores["fault"].status is not Status.OK)
    return [item.scores["fault"] for item in reply.items]


@pytest.fixture(scope="module")
def outcomes(api: RewardClient, scorer: tuple[str, FastAPI]) -> dict[str, RewardValue]:
    """By fault, the first image's score that is none."""
    found = {}
    for fault in (*REPLIES, *PLACES):
        url = fault.path if "://" in fault.path else scorer[0] + fault.path
        scores = score(api, url, **fault.settings)
        found[fault.what] = next(one for one in scores if one.status is not Status.OK)
    return found


@pytest.mark.parametrize("fault", [*REPLIES, *PLACES], ids=lambda fault: fault.what)
def test_a_fault_of_an_endpoint_yields_its_status(outcomes: dict[str, RewardValue], fault: Fault) -> None:
    """Bug: a failure of the scorer becomes a number, hangs the request, or is reported as something else."""
    found = outcomes[fault.what]
    assert (found.status, found.score) == (fault.status, None)
    assert fault.error in (found.error or "")


def test_a_redirect_is_not_followed(outcomes: dict[str, RewardValue], private: socket.socket) -> None:
    """Bug: a public scorer sends the API to a private address by a redirect."""
    assert outcomes["a redirect to a private address"].status is Status.HTTP_ERROR
    with pytest.raises(BlockingIOError):
        private.accept()


def test_what_cannot_be_reached_is_tried_again(api: RewardClient) -> None:
    """Bug: a scorer that restarts costs its images their scores."""
    found = score(api, "http://127.0.0.1:1/")
    assert {(one.status, one.attempts) for one in found} == {(Status.UNREACHABLE, 3)}


def test_numbers_come_in_order_whatever_their_kind(api: RewardClient, scorer: tuple[str, FastAPI]) -> None:
    """Bug: integers are refused, or scores are given to the wrong images."""
    assert [one.score for one in score(api, f"{scorer[0]}/ok")] == [1.0, 2.5, -3.0]


def test_an_item_the_scorer_rejects_leaves_the_others_alone(api: RewardClient, scorer: tuple[str, FastAPI]) -> None:
    """Bug: one image without a face fails its whole batch."""
    found = score(api, f"{scorer[0]}/some-rejected")
    assert [one.status for one in found] == [Status.OK, Status.REJECTED, Status.OK]
    assert (found[1].score, found[1].error) == (None, "no face found")


@pytest.mark.parametrize(
    ("path", "settings", "calls"),
    [
        ("/recovers", {}, 3),
        ("/status/503", {}, 3),
        ("/status/408", {}, 3),
        ("/status/400", {}, 1),
        ("/status/422", {}, 1),
        ("/asks-to-wait-too-long", {}, 1),
        ("/slow", {"timeout_s": 0.2}, 1),
    ],
)
def test_only_what_may_pass_is_tried_again(
    api: RewardClient, scorer: tuple[str, FastAPI], path: str, settings: dict[str, object], calls: int
) -> None:
    """Bug: refusals are retried, or retries have no bound, or a slow scorer gets the same batch again and again."""
    url, app = scorer
    app.state.calls = 0
    found = score(api, url + path, **settings)
    assert app.state.calls == calls
    assert found[0].attempts == calls
    assert (found[0].status is Status.OK) == (path == "/recovers")


@pytest.mark.parametrize("make", [lambda: IMAGES[0][:-9], pixel_bomb], ids=["cut", "13300-squared"])
def test_bad_images_are_refused_before_any_call(
    api: RewardClient, scorer: tuple[str, FastAPI], make: Callable[[], bytes]
) -> None:
    """Bug: a bomb is decoded, or a damaged image is paid for."""
    url, app = scorer
    app.state.calls = 0
    api.register(RewardSpec(name="fault", url=f"{url}/ok", protocol=Protocol.NATIVE, cache=False), replace=True)
    with pytest.raises(WireError, match=r"images\[2\]"):
        api.score(ScoreRequest(prompts=["p"] * 3, images=[*IMAGES[:2], make()], rewards=["fault"]))
    assert app.state.calls == 0


def test_a_probe_reports_a_fault_as_such(api: RewardClient, scorer: tuple[str, FastAPI]) -> None:
    """Bug: probing a broken reward answers 500, or ok."""
    spec = RewardSpec(name="fault", url=f"{scorer[0]}/html", protocol=Protocol.NATIVE)
    api.register(spec, replace=True)
    probe = api.probe("fault")
    assert (probe.status, probe.score) == (Status.BAD_REPLY, None)
    assert "not JSON" in (probe.error or "")


@pytest.fixture(scope="module")
def servers(start: Callable[..., str], serve: Serve, scorer: tuple[str, FastAPI]) -> Servers:
    sdk = serve(create_reward_app(width, RewardEnvironment(signing_secret=SECRET)))  # pyright: ignore[reportArgumentType, reportCallIssue]
    url = start()
    with RewardClient(url) as client:
        client.register(RewardSpec(name="known", url=f"{scorer[0]}/ok", protocol=Protocol.NATIVE), replace=True)
    return Servers(
        api=url,
        small=start(max_body_bytes=65_536),
        keyed=start(api_key="k"),
        without_redis=start(redis_url="redis://127.0.0.1:1/0"),
        signed=f"{sdk}/",
    )


@pytest.fixture(scope="module")
def answers(servers: Servers) -> dict[str, httpx.Response]:
    return {refusal.what: refusal.send(servers) for refusal in REFUSALS}


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.what)
def test_what_is_refused_is_a_problem_with_its_reason(answers: dict[str, httpx.Response], refusal: Refusal) -> None:
    """Bug: bad input answers 500, is accepted, or is refused without a word of what was expected."""
    answer = answers[refusal.what]
    assert (answer.status_code, answer.headers["content-type"]) == (refusal.status, "application/problem+json")
    assert answer.json()["status"] == refusal.status
    assert answer.json()["type"].startswith("urn:lasro:problem:")
    assert refusal.detail in answer.json()["detail"]


def test_the_page_of_faults_tells_what_happens(
    outcomes: dict[str, RewardValue], answers: dict[str, httpx.Response], write_docs: bool
) -> None:
    """Bug: the documentation promises another status than the service gives."""

    def scored(faults: list[Fault]) -> str:
        rows = [
            (fault.what, f"`{outcomes[fault.what].status}`", table_cell(outcomes[fault.what].error)) for fault in faults
        ]
        return table(("the endpoint's fault", "status of the image", "error"), rows)

    def refused(what: str, refusals: list[Refusal]) -> str:
        rows = [(one.what, str(one.status), table_cell(answers[one.what].json()["detail"])) for one in refusals]
        return table((what, "HTTP", "detail"), rows)

    kinds = sorted((*KINDS, LasroError, *HTTP_PROBLEMS), key=lambda kind: (kind.http_status, kind.title))
    types = [
        (f"`{kind.problem_type()}`", str(kind.http_status), kind.title, f"`{kind.__name__}`" if kind in KINDS else "")
        for kind in kinds
    ]
    parts = {
        "types": table(("type", "HTTP", "title", "in Python"), types),
        "replies": scored(REPLIES),
        "places": scored(PLACES),
        "scoring": refused("the request's fault", SCORING),
        "registering": refused("the registration's fault", REGISTERING),
        "calling": refused("the call's fault", CALLING),
    }
    check_page("faults.md", parts, write_docs)


def table_cell(text: str | None) -> str:
    """A message as one cell of a table, without what differs from run to run and from system to system."""
    text = text or ""
    for chance, instead in (
        (r"127\.0\.0\.1:\d+", "127.0.0.1:PORT"),
        (r"\b60\d s ago", "600 s ago"),
        (r"Error \d+", "Error"),
    ):
        text = re.sub(chance, instead, text)
    text = f"{text[:160]}{'...' if len(text) > 160 else ''}"
    return f"`` {text} ``" if "`" in text else f"`{text}`"
