"""Signed calls between the reward API and endpoints, the SDK's and others, over real HTTP."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from PIL import Image
from starlette.types import ASGIApp

from lasro import wire
from lasro.reward_sdk import RewardEnvironment, create_reward_app, reward
from lasro.service.signing import reply_id, signed_headers, signing_key
from lasro.wire import ProbeReply, Protocol, RewardSpec, Status
from lasro_client.services.reward_client import RewardClient
from lasro_reward_api.app import create_app
from lasro_reward_api.routes.rewards import probe_image
from lasro_reward_api.settings import RewardApiSettings

Serve = Callable[[ASGIApp], str]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + base64.b64encode(bytes(range(32))).decode()
KEY = signing_key(SECRET)


@reward
def width(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float]:
    return [float(image.width) for image in images]


@pytest.fixture(scope="module")
def api(redis_url: str, serve: Serve) -> Iterator[RewardClient]:
    settings = RewardApiSettings(redis_url=redis_url, allowed_networks="127.0.0.0/8")  # pyright: ignore[reportArgumentType]
    with RewardClient(serve(create_app(settings))) as client:
        yield client


@pytest.fixture(scope="module")
def sdk_url(serve: Serve) -> str:
    """The SDK, wanting signatures."""
    return serve(create_reward_app(width, RewardEnvironment(signing_secret=SECRET)))  # pyright: ignore[reportArgumentType, reportCallIssue]


@pytest.fixture(scope="module")
def open_sdk_url(serve: Serve) -> str:
    """The SDK without any secret: takes everything and signs nothing."""
    return serve(create_reward_app(width, RewardEnvironment()))  # pyright: ignore[reportCallIssue]


def probe(api: RewardClient, url: str, **spec: Any) -> ProbeReply:
    name = f"signed-{uuid.uuid4().hex}"
    api.register(RewardSpec(name=name, url=f"{url}/", protocol=Protocol.NATIVE, **spec))
    return api.probe(name)


def test_signed_calls_are_answered_and_signed_replies_taken(api: RewardClient, sdk_url: str) -> None:
    """Bug: the two sides sign different bytes, so that nothing signed ever works."""
    for spec in ({"secret": SECRET}, {"secret": SECRET, "signed_replies": True}):
        for encoding in ("json", "msgpack"):
            found = probe(api, sdk_url, mapping={"encoding": encoding}, **spec)
            assert (found.status, found.score) == (Status.OK, 128.0), found.error


@pytest.mark.parametrize("secret", [None, "plain-token", OTHER])
def test_who_does_not_know_the_secret_is_refused(api: RewardClient, sdk_url: str, secret: str | None) -> None:
    """Bug: an endpoint that wants signatures scores for anybody."""
    found = probe(api, sdk_url, secret=secret)
    assert (found.status, found.score) == (Status.HTTP_ERROR, None)
    assert "HTTP 401" in (found.error or "")


def post(url: str, headers: dict[str, str], content: bytes) -> httpx.Response:
    return httpx.post(f"{url}/", content=content, headers={"Content-Type": "application/json"} | headers, timeout=30)


def test_the_sdk_refuses_forged_old_and_replayed_calls(sdk_url: str) -> None:
    """Bug: whoever overhears one call may repeat it, or change what is asked."""
    content = wire.NativeRequest(prompts=["p"], images=[probe_image()], metadata=[None]).model_dump_json().encode()
    good = signed_headers(KEY, "msg_one", content)
    answer = post(sdk_url, good, content)
    assert answer.json() == {"scores": [128.0]}
    refused = {
        "not signed": post(sdk_url, {}, content),
        "does not fit": post(sdk_url, signed_headers(KEY, "msg_two", content), content + b" "),
        "check both clocks": post(sdk_url, signed_headers(KEY, "msg_3", content, lambda: time.time() - 600), content),
        "came before": post(sdk_url, good, content),
    }
    for reason, answer in refused.items():
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"
        assert reason in answer.json()["detail"]


def forger(kind: str) -> FastAPI:
    """Answers with a score and a signature that is wrong in one way."""
    app = FastAPI()
    body = b'{"scores": [1.0]}'

    @app.post("/")
    async def score(request: Request) -> Response:
        answered = reply_id(request.headers["webhook-id"])
        headers = {
            "unsigned": {},
            "wrong-key": signed_headers(signing_key(OTHER), answered, body),
            "other-call": signed_headers(KEY, reply_id("msg_other"), body),
            "own-request": signed_headers(KEY, request.headers["webhook-id"], body),
            "old": signed_headers(KEY, answered, body, lambda: time.time() - 600),
            "changed": signed_headers(KEY, answered, b'{"scores": [0.0]}'),
        }[kind]
        return Response(body, media_type="application/json", headers=headers)

    return app


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("unsigned", "not signed"),
        ("wrong-key", "does not fit"),
        ("other-call", "another call"),
        ("own-request", "another call"),
        ("old", "check both clocks"),
        ("changed", "does not fit"),
    ],
)
def test_a_reply_that_is_not_signed_for_this_call_is_a_bad_reply(
    api: RewardClient, serve: Serve, kind: str, reason: str
) -> None:
    """Bug: whoever sits between API and scorer decides what is rewarded."""
    found = probe(api, serve(forger(kind)), secret=SECRET, signed_replies=True)
    assert (found.status, found.score) == (Status.BAD_REPLY, None)
    assert reason in (found.error or "")


def test_a_signing_secret_is_never_sent(api: RewardClient, serve: Serve) -> None:
    """Bug: the secret that makes signatures worth something travels as a bearer token."""
    seen: list[dict[str, str]] = []
    app = FastAPI()

    @app.post("/")
    async def score(request: Request) -> dict[str, list[float]]:
        seen.append(dict(request.headers))
        return {"scores": [1.0]}

    assert probe(api, serve(app), secret=SECRET).status is Status.OK
    assert "authorization" not in seen[0]
    assert SECRET[6:] not in str(seen)
    assert seen[0]["webhook-id"].startswith("msg_")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"secret": "whsec_c2hvcnQ="}, "24 to 64 bytes"),
        ({"secret": "whsec_%%%"}, "not base64"),
        ({"signed_replies": True}, "expected whsec_"),
        ({"signed_replies": True, "secret": "token"}, "expected whsec_"),
        ({"headers": {"Webhook-Id": "msg_1"}}, "cannot be set"),
    ],
)
def test_what_cannot_be_signed_is_refused_at_registration(
    api: RewardClient, change: dict[str, Any], reason: str
) -> None:
    """Bug: a mistyped secret is found out at the first score, or sent as a bearer token instead."""
    with pytest.raises(ValueError, match=r"signing secret|headers") as caught:
        api.register(RewardSpec(name="unsignable", url="http://127.0.0.1:1/", protocol=Protocol.NATIVE, **change))
    assert reason in str(caught.value)


def test_without_a_secret_the_sdk_takes_signed_calls_too(api: RewardClient, open_sdk_url: str) -> None:
    """Bug: signatures cannot be introduced on one side first."""
    assert probe(api, open_sdk_url, secret=SECRET).status is Status.OK
