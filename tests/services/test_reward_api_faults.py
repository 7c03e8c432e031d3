"""Every way in which a reward endpoint can fail, each with the status it must yield, over real HTTP."""

from __future__ import annotations

import asyncio
import gzip
import io
import socket
from collections.abc import Callable, Iterator

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from PIL import Image
from starlette.types import ASGIApp

from lasro.errors import WireError
from lasro.wire import Protocol, RewardScore, RewardSpec, ScoreRequest, Status
from lasro_client.reward_client import RewardClient
from lasro_reward_api.app import create_app
from lasro_reward_api.settings import RewardApiSettings


def png(shade: int, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [png(shade) for shade in (10, 20, 30)]
JSON_REPLIES = {
    "too-few": ('{"scores": [0.1, 0.2]}', "got 2, expected one per image (3)"),
    "too-many": ('{"scores": [0.1, 0.2, 0.3, 0.4]}', "got 4, expected one per image (3)"),
    "one-for-all": ('{"scores": 0.5}', "no list 'scores'"),
    "nan": ('{"scores": [0.1, NaN, 0.3]}', "scores[1]: got nan, expected a finite number"),
    "infinity": ('{"scores": [0.1, 1e999, 0.3]}', "scores[1]: got inf, expected a finite number"),
    "strings": ('{"scores": ["0.1", "0.2", "0.3"]}', "scores[0]: got str, expected a number"),
    "booleans": ('{"scores": [true, false, true]}', "scores[0]: got bool, expected a number"),
    "nulls": ('{"scores": [0.1, null, 0.3]}', "scores[1]: got NoneType, expected a number"),
    "nested": ('{"scores": [[0.1], [0.2], [0.3]]}', "scores[0]: got list, expected a number"),
    "huge-integer": ('{"scores": [1' + "0" * 400 + ", 1, 1]}", "scores[0]: got an integer too large"),
    "null-without-reason": ('{"scores": [0.1, null, 0.3], "errors": [null, null, null]}', "scores[1]: got NoneType"),
    "score-beside-error": ('{"scores": [0.1, 0.2, 0.3], "errors": [null, "no face", null]}', "scores[1]: got a value"),
    "too-few-errors": ('{"scores": [0.1, 0.2, 0.3], "errors": [null]}', "errors: got 1"),
    "error-body": ('{"error": "out of memory"}', "no list 'scores', got the keys ['error']"),
    "array": ("[0.1, 0.2, 0.3]", "got a JSON list, expected an object"),
    "empty": ("", "got 0 bytes of application/json that are not JSON"),
    "deep": ("[" * 100_000, "that are not JSON"),
}


def endpoints() -> FastAPI:
    """A scorer with every fault there is, by path."""
    app = FastAPI()
    app.state.calls = 0

    @app.post("/json/{name}")
    async def json_reply(name: str) -> Response:
        return Response(JSON_REPLIES[name][0], media_type="application/json")

    @app.post("/html")
    async def html() -> Response:
        return Response("<html>Login</html>", media_type="text/html")

    @app.post("/redirect")
    async def redirect() -> Response:
        return Response(status_code=307, headers={"Location": "/ok"})

    @app.post("/ok")
    async def ok(request: Request) -> Response:
        app.state.calls += 1
        assert len((await request.json())["images"]) == 3
        return Response('{"scores": [1, 2.5, -3]}', media_type="application/json")

    @app.post("/status/{status}")
    async def with_status(status: int) -> Response:
        app.state.calls += 1
        return Response("no", status_code=status, headers={"Retry-After": "0"})

    @app.post("/recovers")
    async def recovers(request: Request) -> Response:
        if app.state.calls == 2:
            return await ok(request)
        return await with_status(503)

    @app.post("/asks-to-wait-too-long")
    async def too_long() -> Response:
        app.state.calls += 1
        return Response(status_code=429, headers={"Retry-After": "86400"})

    @app.post("/slow")
    async def slow() -> Response:
        app.state.calls += 1
        await asyncio.sleep(5)
        return Response('{"scores": [1, 2, 3]}')

    @app.post("/trickle")
    async def trickle() -> Response:
        async def drops():
            for _ in range(100):
                yield b" "
                await asyncio.sleep(0.05)

        return StreamingResponse(drops(), media_type="application/json")

    @app.post("/endless")
    async def endless() -> Response:
        async def flood():
            for _ in range(16_384):
                yield b" " * 65_536

        return StreamingResponse(flood(), media_type="application/json")

    @app.post("/gzip-bomb")
    async def bomb() -> Response:
        body = gzip.compress(b" " * (64 << 20))
        return Response(body, media_type="application/json", headers={"Content-Encoding": "gzip"})

    @app.post("/some-rejected")
    async def some_rejected() -> Response:
        return Response('{"scores": [0.1, null, 0.3], "errors": [null, "no face found", null]}')

    return app


@pytest.fixture(scope="module")
def api(redis_url: str, serve: Callable[[ASGIApp], str]) -> Iterator[RewardClient]:
    settings = RewardApiSettings(redis_url=redis_url, allowed_networks="127.0.0.0/8", max_reply_bytes=1 << 20)  # pyright: ignore[reportArgumentType]
    with RewardClient(serve(create_app(settings))) as client:
        yield client


@pytest.fixture(scope="module")
def scorer(serve: Callable[[ASGIApp], str]) -> tuple[str, FastAPI]:
    app = endpoints()
    return serve(app), app


def score(api: RewardClient, url: str, **settings: object) -> list[RewardScore]:
    spec = RewardSpec(name="fault", url=url, protocol=Protocol.NATIVE, cache=False, **settings)  # pyright: ignore[reportArgumentType]
    api.register(spec, replace=True)
    reply = api.score(ScoreRequest(prompts=["p"] * 3, images=IMAGES, rewards=["fault"]))
    for item in reply.items:
        assert (item.total is None) == (item.scores["fault"].status is not Status.OK)
    return [item.scores["fault"] for item in reply.items]


@pytest.mark.parametrize("name", sorted(JSON_REPLIES))
def test_a_reply_that_is_not_one_number_per_image_is_a_bad_reply(
    api: RewardClient, scorer: tuple[str, FastAPI], name: str
) -> None:
    """Bug: a malformed reply is broadcast, coerced or counted as 0, and the run trains on it."""
    scores = score(api, f"{scorer[0]}/json/{name}")
    assert {found.status for found in scores} == {Status.BAD_REPLY}
    assert JSON_REPLIES[name][1] in (scores[0].error or "")


@pytest.mark.parametrize(
    ("path", "settings", "status", "reason"),
    [
        ("/html", {}, Status.BAD_REPLY, "text/html that are not JSON"),
        ("/endless", {}, Status.BAD_REPLY, "more than 1048576 bytes"),
        ("/gzip-bomb", {}, Status.BAD_REPLY, "compressed"),
        ("/ok", {"range": (0, 1)}, Status.BAD_REPLY, "expected a score in [0.0, 1.0]"),
        ("/redirect", {}, Status.HTTP_ERROR, "HTTP 307: redirects are not followed"),
        ("/status/404", {}, Status.HTTP_ERROR, "HTTP 404"),
        ("/status/500", {}, Status.HTTP_ERROR, "HTTP 500"),
        ("/slow", {"timeout_s": 0.3}, Status.TIMEOUT, "no reply within 0.3 s"),
        ("/trickle", {"timeout_s": 0.3}, Status.TIMEOUT, "no reply within 0.3 s"),
    ],
)
def test_a_failing_endpoint_yields_its_status(
    api: RewardClient,
    scorer: tuple[str, FastAPI],
    path: str,
    settings: dict[str, object],
    status: Status,
    reason: str,
) -> None:
    """Bug: a failure of the scorer becomes a number, hangs the request, or is reported as something else."""
    found = score(api, scorer[0] + path, **settings)
    failed = next(one for one in found if one.status is not Status.OK)
    assert (failed.status, failed.score) == (status, None)
    assert reason in (failed.error or "")


def test_what_cannot_be_reached_is_unreachable(api: RewardClient) -> None:
    """Bug: a scorer that is down fails the whole request instead of its own items."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    found = score(api, f"http://127.0.0.1:{port}/")
    assert {one.status for one in found} == {Status.UNREACHABLE}
    assert found[0].attempts == 3
    unknown = score(api, "https://no-such-host.invalid/")
    assert {one.status for one in unknown} == {Status.UNREACHABLE}


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


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://10.1.2.3/", "plain http may not go"),
        ("http://169.254.169.254/latest/meta-data", "plain http may not go"),
        ("http://93.184.216.34/", "plain http may not go"),
        ("https://10.0.0.1/", "https may not go"),
        ("https://[::ffff:10.0.0.1]/", "https may not go"),
        ("https://[64:ff9b::a00:1]/", "https may not go"),
        ("https://100.64.0.1/", "https may not go"),
        ("https://0.0.0.0/", "https may not go"),
        ("https://167772161/", "https may not go"),
    ],
)
def test_addresses_out_of_bounds_are_blocked(api: RewardClient, url: str, reason: str) -> None:
    """Bug: a registered URL reaches the metadata service or a neighbour in the private network."""
    found = score(api, url)
    assert {one.status for one in found} == {Status.BLOCKED}
    assert reason in (found[0].error or "")


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ([b"GIF89a", IMAGES[0], IMAGES[0]], "images[0]: image: got 6 bytes that are no PNG, JPEG or WebP"),
        ([IMAGES[0], IMAGES[0][:-9], IMAGES[0]], "images[1]: image: a broken PNG"),
        ([IMAGES[0], b"\x89PNG\r\n\x1a\n", IMAGES[0]], "images[1]: image:"),
        ([IMAGES[0], IMAGES[0], b"\xff\xd8\xff\xe0junk"], "images[2]: image:"),
        ([IMAGES[0], IMAGES[0], png(1, 13_300)], "images[2]: image:"),
    ],
    ids=["gif", "cut", "magic-only", "jpeg-junk", "13300-squared"],
)
def test_bad_images_are_refused_before_any_call(
    api: RewardClient, scorer: tuple[str, FastAPI], images: list[bytes], reason: str
) -> None:
    """Bug: a bomb is decoded, or a damaged image is paid for."""
    url, app = scorer
    app.state.calls = 0
    spec = RewardSpec(name="fault", url=f"{url}/ok", protocol=Protocol.NATIVE, cache=False)
    api.register(spec, replace=True)
    with pytest.raises(WireError, match=r"images\[") as caught:
        api.score(ScoreRequest(prompts=["p"] * 3, images=images, rewards=["fault"]))
    assert reason in str(caught.value)
    assert app.state.calls == 0


def test_a_probe_reports_a_fault_as_such(api: RewardClient, scorer: tuple[str, FastAPI]) -> None:
    """Bug: probing a broken reward answers 500, or ok."""
    spec = RewardSpec(name="fault", url=f"{scorer[0]}/html", protocol=Protocol.NATIVE)
    api.register(spec, replace=True)
    probe = api.probe("fault")
    assert (probe.status, probe.score) == (Status.BAD_REPLY, None)
    assert "not JSON" in (probe.error or "")
