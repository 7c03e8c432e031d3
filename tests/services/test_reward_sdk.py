"""The reward SDK: what a user's function may return, and the endpoint it becomes."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
from PIL import Image

from lasro import wire
from lasro.errors import ConfigError, RewardError
from lasro.reward_sdk import RejectedItem, Reward, RewardEnvironment, create_reward_app, load_reward, reward

IMAGE = Image.new("RGB", (8, 8), (10, 20, 30))
FIVE_LINES = """
from lasro.reward_sdk import reward

@reward
def brightness(images, prompts, metadata):
    return [image.convert("L").resize((1, 1)).getpixel((0, 0)) / 255 for image in images]
"""


def png(image: Image.Image = IMAGE) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@reward
def first_channel(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float | RejectedItem]:
    """Mean of the red channel, negative where the metadata says so; the prompt 'skip' is rejected."""
    return [
        RejectedItem("asked to skip") if prompt == "skip" else float(np.asarray(image)[..., 0].mean()) * (extra or 1)
        for image, prompt, extra in zip(images, prompts, metadata, strict=True)
    ]


@asynccontextmanager
async def client(scorer: Reward, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_reward_app(scorer, RewardEnvironment(**settings))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as opened,
    ):
        yield opened


def body(images: list[bytes], prompts: list[str] | None = None, metadata: list[Any] | None = None) -> dict[str, Any]:
    return {
        "prompts": prompts or ["any"] * len(images),
        "images": [base64.b64encode(image).decode() for image in images],
        "metadata": metadata or [None] * len(images),
    }


def post(scorer: Reward, content: dict[str, Any], **settings: Any) -> httpx.Response:
    async def call() -> httpx.Response:
        async with client(scorer, **settings) as opened:
            return await opened.post("/", json=content)

    return asyncio.run(call())


def returning(answer: Any) -> Reward:
    @reward
    def scorer(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> Any:
        return answer

    return scorer


def test_scores_in_order_with_metadata() -> None:
    """Guards the native protocol: one number per image, in order, metadata untouched."""
    white = png(Image.new("RGB", (4, 4), "white"))
    response = post(first_channel, body([png(), white, png()], metadata=[None, None, -2]))
    assert response.status_code == 200
    assert response.json() == {"scores": [10.0, 255.0, -20.0]}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_formats_arrive_as_rgb(kind: str, mode: str) -> None:
    """Guards scorers against modes they do not expect."""
    if (kind, mode) == ("JPEG", "RGBA"):
        mode = "CMYK"
    seen: list[str] = []

    @reward
    def modes(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float]:
        seen.extend(image.mode for image in images)
        return [0.0] * len(images)

    buffer = io.BytesIO()
    IMAGE.convert(mode).save(buffer, kind)
    assert post(modes, body([buffer.getvalue()])).json() == {"scores": [0.0]}
    assert seen == ["RGB"]


def test_msgpack_both_ways() -> None:
    """Guards the msgpack encoding: images as bytes, no base64."""
    request = wire.NativeRequest(prompts=["any", "skip"], images=[png(), png()], metadata=[None, None])
    headers = {"Content-Type": wire.MSGPACK_TYPE, "Accept": wire.MSGPACK_TYPE}

    async def call() -> httpx.Response:
        async with client(first_channel) as opened:
            return await opened.post("/", content=wire.to_msgpack(request), headers=headers)

    response = asyncio.run(call())
    assert response.headers["content-type"] == wire.MSGPACK_TYPE
    assert msgpack.unpackb(response.content) == {"scores": [10.0, None], "errors": [None, "asked to skip"]}


def gif() -> bytes:
    buffer = io.BytesIO()
    IMAGE.save(buffer, "GIF")
    return buffer.getvalue()


def truncated() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8)
    return png(Image.fromarray(noise))[:1500]


@pytest.mark.parametrize("broken", [b"", b"no image", truncated(), gif()], ids=["empty", "text", "cut", "gif"])
def test_an_unreadable_image_costs_only_itself(broken: bytes) -> None:
    """Guards its neighbours: one broken file must neither be scored nor fail the batch."""
    answer = post(first_channel, body([png(), broken, png()])).json()
    assert answer["scores"] == [10.0, None, 10.0]
    assert answer["errors"][1].startswith("image: ")
    assert answer["errors"][::2] == [None, None]


def test_big_images_are_refused_before_decoding() -> None:
    """Guards memory: a PNG of half a megabyte can hold 600 MB of pixels."""
    huge = png(Image.new("L", (5000, 5000)))
    answer = post(first_channel, body([huge, png()])).json()
    assert answer["scores"] == [None, 10.0]
    assert "5000 x 5000" in answer["errors"][0]
    many = post(first_channel, body([png()] * 4), max_request_pixels=200)
    assert many.status_code == 422
    assert "200 pixels" in many.json()["detail"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([1.0], "returned 1 scores, expected one per image (2)"),
        ([1.0, float("nan")], "scores[1] is nan"),
        ([float("inf"), 0.0], "scores[0] is inf"),
        ([True, 0.0], "scores[0] is True"),
        (["1", 0.0], "scores[0] is '1'"),
        ([None, 0.0], "scores[0] is None"),
        (3.0, "returned float, expected a list of 2 numbers"),
    ],
)
def test_wrong_answers_are_named(answer: Any, message: str) -> None:
    """Guards against broadcasting, NaN and strings reaching an optimiser, and against blaming the wrong part."""
    response = post(returning(answer), body([png(), png()]))
    assert response.status_code == 424
    assert response.json()["detail"].startswith("scorer: ")
    assert message in response.json()["detail"]


def test_array_scalars_are_numbers() -> None:
    """Guards against refusing what numpy and torch give: a list of 0-d values, or one array."""
    assert returning(np.array([1, 2], np.float32))([IMAGE] * 2, ["a"] * 2) == [1.0, 2.0]
    assert returning([np.float64(0.5), np.array(2)])([IMAGE] * 2, ["a"] * 2) == [0.5, 2.0]


def test_an_exception_is_reported_under_the_function_s_name() -> None:
    """Guards against a bare 500: whoever registered the reward must see what went wrong."""

    @reward
    def fragile(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float]:
        raise KeyError("weights")

    response = post(fragile, body([png()]))
    assert response.status_code == 424
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["detail"] == "fragile: raised KeyError: 'weights'"
    with pytest.raises(RewardError, match="fragile"):
        fragile([IMAGE], ["any"])


@pytest.mark.parametrize(
    "content",
    [{}, body([png()]) | {"prompts": ["a", "b"]}, body([png()]) | {"metadata": []}, body([png()]) | {"x": 1}],
)
def test_malformed_requests_are_refused(content: dict[str, Any]) -> None:
    """Guards against pairing images with the wrong prompts."""
    response = post(first_channel, content)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"


def test_one_at_a_time_with_a_bounded_queue_and_a_live_loop() -> None:
    """Guards scorers that are not thread-safe, and health checks while one of them is busy."""
    running, most, release = 0, 0, threading.Event()

    @reward
    def slow(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        assert release.wait(20)
        running -= 1
        return [0.0] * len(images)

    async def scenario() -> tuple[list[httpx.Response], httpx.Response, httpx.Response]:
        async with client(slow, max_waiting=3) as opened:
            calls = [asyncio.create_task(opened.post("/", json=body([png()]))) for _ in range(3)]
            while running == 0:
                await asyncio.sleep(0.005)
            refused = await opened.post("/", json=body([png()]))
            health = await opened.get("/health/ready")
            release.set()
            return await asyncio.gather(*calls), refused, health

    answers, refused, health = asyncio.run(scenario())
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert most == 1
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    assert health.status_code == 200


def test_what_nobody_waits_for_any_more_is_not_scored() -> None:
    """Guards a slow scorer: else it works through a queue of calls that were given up, and answers none in time."""
    scored, begun, release = [], threading.Event(), threading.Event()

    @reward
    def slow(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float]:
        scored.extend(prompts)
        begun.set()
        assert release.wait(20)
        return [0.0] * len(images)

    async def scenario() -> list[int]:
        async with client(slow) as opened:
            first = asyncio.create_task(opened.post("/", json=body([png()], ["first"])))
            while not begun.is_set():
                await asyncio.sleep(0.005)
            headers = ({"X-Request-Timeout-S": "0.05"}, {"X-Request-Timeout-S": "soon"})
            names = ("late", "odd")
            later = [
                asyncio.create_task(opened.post("/", json=body([png()], [name]), headers=header))
                for name, header in zip(names, headers, strict=True)
            ]
            await asyncio.sleep(0.3)
            release.set()
            return [answer.status_code for answer in await asyncio.gather(first, *later)]

    assert asyncio.run(scenario()) == [200, 504, 200]
    assert sorted(scored) == ["first", "odd"]


def test_key_health_and_metrics() -> None:
    """Guards the shared service rules: a key where one is set, open health, items counted by outcome."""

    async def scenario() -> tuple[httpx.Response, str]:
        async with client(first_channel, api_key="secret") as opened:
            refused = await opened.post("/", json=body([png()]))
            header = {"Authorization": "Bearer secret"}
            await opened.post("/", json=body([png(), png()], ["a", "skip"]), headers=header)
            return refused, (await opened.get("/metrics")).text

    refused, metrics = asyncio.run(scenario())
    assert refused.status_code == 401
    assert 'lasro_reward_items_total{outcome="scored"} 1.0' in metrics
    assert 'lasro_reward_items_total{outcome="rejected"} 1.0' in metrics


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("json", "expected MODULE:FUNCTION"),
        ("no_such_module:f", "cannot import no_such_module"),
        ("json:no_such", "got nothing"),
        ("json:dumps", "decorated with @reward"),
    ],
)
def test_unusable_targets_are_explained(target: str, message: str) -> None:
    """Guards the first thing a user gets wrong."""
    with pytest.raises(ConfigError, match=message):
        load_reward(target)


@pytest.fixture
def brightness_url(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "mine.py").write_text(FIVE_LINES, encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        environment = os.environ | {"LASRO_LISTEN_FD": str(listener.fileno())}
        command = [sys.executable, "-m", "lasro.reward_sdk", "mine:brightness"]
        with subprocess.Popen(command, cwd=tmp_path, env=environment, pass_fds=[listener.fileno()]) as process:
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(10)


def test_five_lines_are_a_service(brightness_url: str) -> None:
    """Guards `python -m lasro.reward_sdk module:function` with a user's file, end to end; ends on SIGTERM."""
    content = body([png(Image.new("RGB", (4, 4), "white"))])
    answer = httpx.post(f"{brightness_url}/", json=content, timeout=60, trust_env=False)
    assert answer.json() == {"scores": [1.0]}


def test_the_built_in_detector_is_served() -> None:
    """Guards the built-ins: they are ordinary endpoints, and their rejections arrive as errors."""
    scorer = load_reward("lasro_rewards.attribute_binding:attribute_binding")
    answer = post(scorer, body([png(), png()], ["a red circle", "dog face"])).json()
    assert answer["scores"] == [0.0, None]
    assert "dog face" in answer["errors"][1]


def test_no_torch_is_imported() -> None:
    """Guards start-up time and memory of reward processes."""
    code = "import sys, lasro_rewards.attribute_binding, lasro_rewards.jpeg; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "False"
