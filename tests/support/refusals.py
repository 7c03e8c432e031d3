"""Requests that the reward API, or an endpoint of the SDK that wants signatures, must refuse, and with what."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import httpx
import msgpack
from faulty_scorer import pixel_bomb, png
from png_files import HOSTILE_PNGS

from lasro import wire
from lasro.service.signing import signed_headers, signing_key

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
IMAGE = png(7)
FORM = "application/x-www-form-urlencoded"
NESTED: dict[str, Any] = reduce(lambda inner, _: {"a": inner}, range(60), {})
ONE_ROW, TEXT_BOMB = HOSTILE_PNGS["one row of four"], HOSTILE_PNGS["text that inflates without end"]


@dataclass(frozen=True)
class Servers:
    """URLs of a reward API with the reward `known`, one whose bodies are limited to 64 KiB, one with an API key, one
    without a Redis that answers, and an endpoint that wants signatures."""

    api: str
    small: str
    keyed: str
    without_redis: str
    signed: str


@dataclass(frozen=True)
class Refusal:
    """`send` makes the request; `detail` is a part of what is told."""

    what: str
    status: int
    detail: str
    send: Callable[[Servers], httpx.Response]


def score(
    images: list[bytes], content_type: str = wire.MSGPACK_TYPE, **change: Any
) -> Callable[[Servers], httpx.Response]:
    """`POST /v1/score` of these images."""
    body = {"prompts": ["p"] * len(images), "images": images, "rewards": ["known"]} | change
    return posted("/v1/score", msgpack.packb(body) or b"", content_type)


def posted(path: str, content: bytes, content_type: str = "application/json") -> Callable[[Servers], httpx.Response]:
    headers = {"Content-Type": content_type}
    return lambda servers: httpx.post(servers.api + path, content=content, headers=headers, timeout=60)


def browsed(headers: dict[str, str]) -> Callable[[Servers], httpx.Response]:
    """`GET /v1/rewards` with what a browser adds for a page."""
    return lambda servers: httpx.get(f"{servers.api}/v1/rewards", headers=headers)


def registered(**change: Any) -> Callable[[Servers], httpx.Response]:
    """`POST /v1/rewards`."""
    body = {"name": "refused", "url": "http://127.0.0.1:1/", "protocol": "native"} | change
    return posted("/v1/rewards", json.dumps(body).encode())


def called(
    message_id: str, age_s: float = 0.0, extra: bytes = b"", times: int = 1
) -> Callable[[Servers], httpx.Response]:
    """A call of the endpoint that wants signatures; the last answer of so many."""

    def send(servers: Servers) -> httpx.Response:
        content = wire.NativeRequest(prompts=["p"], images=[IMAGE], metadata=[None]).model_dump_json().encode()
        headers = signed_headers(signing_key(SECRET), message_id, content, lambda: time.time() - age_s)
        headers = {"Content-Type": "application/json"} | (headers if message_id else {})
        answers = [httpx.post(servers.signed, content=content + extra, headers=headers) for _ in range(times)]
        return answers[-1]

    return send


def _elsewhere(name: str, send: Callable[[str], httpx.Response]) -> Callable[[Servers], httpx.Response]:
    return lambda servers: send(getattr(servers, name))


SCORING = [
    Refusal(
        "a PNG of 13,300 x 13,300 pixels in 515 kB",
        422,
        "got 13300 x 13300 pixels",
        lambda servers: score([pixel_bomb()])(servers),
    ),
    Refusal("a PNG that is cut off", 422, "images[1]: image: a PNG that ends early", score([IMAGE, IMAGE[:-9]])),
    Refusal("a PNG of one row, which says it has four", 422, "got 13 bytes of pixels", score([ONE_ROW])),
    Refusal("a PNG with text that inflates without end", 422, "images[0]: image: a broken PNG", score([TEXT_BOMB])),
    Refusal("the first 8 bytes of a PNG", 422, "images[0]: image:", score([IMAGE[:8]])),
    Refusal("a JPEG of rubbish", 422, "images[0]: image:", score([b"\xff\xd8\xff\xe0junk"])),
    Refusal("a GIF", 422, "images[0]: image: got 6 bytes that are no PNG, JPEG or WebP", score([b"GIF89a"])),
    Refusal("base64 that is none", 422, "images.0: Value error, expected base64 text", score(["not base64!"])),  # pyright: ignore[reportArgumentType]
    Refusal("msgpack that is called JSON", 422, "body: Invalid JSON", score([IMAGE], "application/json")),
    Refusal("JSON that is called msgpack", 422, "not one msgpack map", posted("/v1/score", b"{}", wire.MSGPACK_TYPE)),
    Refusal("an image as the body", 415, "Content-Type: got 'image/png'", posted("/v1/score", IMAGE, "image/png")),
    Refusal("JSON that is called a form", 415, "-H 'Content-Type: application/json'", posted("/v1/score", b"{}", FORM)),
    Refusal("a page of another site, no API key", 403, "Origin: got", browsed({"Origin": "https://evil.example"})),
    Refusal("a name that leads here by DNS, no API key", 403, "Host: got", browsed({"Host": "evil.example:8000"})),
    Refusal(
        "more prompts than images",
        422,
        "images: got 1, expected one per prompt (2)",
        score([IMAGE], prompts=["p", "q"]),
    ),
    Refusal(
        "NaN in the metadata", 422, "metadata: expected what JSON can hold", score([IMAGE], metadata=[float("nan")])
    ),
    Refusal("a weight that is no number", 422, "objective", score([IMAGE], objective={"known": float("inf")})),
    Refusal("a reward that is not registered", 404, "reward other: not registered", score([IMAGE], rewards=["other"])),
    Refusal("a name with a path in it", 422, "rewards.0", score([IMAGE], rewards=["../etc"])),
    Refusal(
        "a time limit of 0 s",
        422,
        "X-Request-Timeout-S",
        _elsewhere("api", lambda url: httpx.post(f"{url}/v1/score", headers={"X-Request-Timeout-S": "0"})),
    ),
    Refusal(
        "a body over LASRO_MAX_BODY_BYTES",
        413,
        "expected at most 65536 bytes",
        _elsewhere("small", lambda url: httpx.post(f"{url}/v1/score", content=bytes(70_000))),
    ),
    Refusal(
        "no API key where one is set",
        401,
        "Authorization",
        _elsewhere("keyed", lambda url: httpx.get(f"{url}/v1/rewards")),
    ),
    Refusal(
        "Redis is down",
        502,
        "Redis cannot be reached",
        _elsewhere("without_redis", lambda url: httpx.get(f"{url}/v1/rewards")),
    ),
]
REGISTERING = [
    Refusal("another scheme than http(s)", 422, "got scheme 'ftp'", registered(url="ftp://host/")),
    Refusal("a user name in the URL", 422, "user name or password", registered(url="http://user:pw@host/")),
    Refusal("a port that is none", 422, "expected http(s)://HOST", registered(url="http://host:99999/")),
    Refusal("a header that the API sets itself", 422, "'Host' cannot be set", registered(headers={"Host": "other"})),
    Refusal("a header with a line break", 422, "not printable ASCII", registered(headers={"X-A": "a\r\nB: c"})),
    Refusal("a protocol that does not exist", 422, "protocol", registered(protocol="carrier-pigeon")),
    Refusal("a setting that does not exist", 422, "nonsense", registered(nonsense=1)),
    Refusal("a protocol's setting that is missing", 422, "mapping.reward: got nothing", registered(protocol="unirl")),
    Refusal("a range the wrong way round", 422, "low < high", registered(range=[1, 0])),
    Refusal("a signing secret of 5 bytes", 422, "24 to 64 bytes", registered(secret="whsec_c2hvcnQ=")),
    Refusal("signed replies without a signing secret", 422, "expected whsec_", registered(signed_replies=True)),
    Refusal("text for a boolean", 422, "cache: Input should be a valid boolean, got str", registered(cache="yes")),
    Refusal("text for a number", 422, "timeout_s: Input should be a valid number", registered(timeout_s="30")),
    Refusal("20,000 headers", 422, "got 20000 headers", registered(headers={f"X-{n}": "" for n in range(20_000)})),
    Refusal(
        "a mapping of 1 MB", 422, "as JSON, expected at most 65536", registered(mapping={"request": "a" * 1_000_000})
    ),
    Refusal("a mapping of 60 levels", 422, "got more than 40 levels", registered(mapping=NESTED)),
    Refusal("a name that is in use", 409, "the name is in use", registered(name="known")),
    Refusal("a name that is too long", 422, "name", registered(name="x" * 65)),
]
CALLING = [
    Refusal("no signature", 401, "not signed", called("")),
    Refusal("another body than was signed", 401, "does not fit", called("msg_changed", extra=b" ")),
    Refusal("a signature of ten minutes ago", 401, "check both clocks", called("msg_old", age_s=600)),
    Refusal("a call that came before", 401, "came before", called("msg_again", times=2)),
]
