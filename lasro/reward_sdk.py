"""Turn a plain function into a reward endpoint. Imports no torch.

    # brightness.py
    from lasro.reward_sdk import reward

    @reward
    def brightness(images, prompts, metadata):
        return [image.convert("L").resize((1, 1)).getpixel((0, 0)) / 255 for image in images]

    python -m lasro.reward_sdk brightness:brightness

`POST /` speaks the native protocol, in JSON (images as base64) and in msgpack (bytes).
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from fastapi import FastAPI, Request, Response
from PIL import Image
from prometheus_client import CollectorRegistry, Counter, Histogram
from pydantic import Field, SecretStr, ValidationError

from lasro import wire
from lasro.errors import BusyError, ConfigError, TimeoutExceededError, WireError
from lasro.images import MAX_PIXELS, decode_image
from lasro.reward_function import RejectedItem, Reward, Scores, load_reward, reward
from lasro.service.app import create_service, parse_message, reply
from lasro.service.content_types import read_body
from lasro.service.environment import ServiceEnvironment
from lasro.service.openapi import message_body, problems
from lasro.service.serve import run_service
from lasro.service.signing import Verifier, reply_id, signed_headers, signing_key
from lasro.validation import explain

__all__ = ["RejectedItem", "Reward", "RewardEnvironment", "create_reward_app", "load_reward", "reward"]


class RewardEnvironment(ServiceEnvironment):
    """Settings of a reward endpoint."""

    max_pixels: int = Field(MAX_PIXELS, ge=1)
    """Largest image, in pixels; a bigger one is rejected before it is decoded."""
    max_request_pixels: int = Field(1 << 28, ge=1)
    """Largest sum over the images of one request."""
    max_waiting: int = Field(32, ge=1)
    """Requests in flight at once; further ones are answered 503."""
    signing_secret: SecretStr | None = None
    """whsec_...: calls must be signed with it (Standard Webhooks), and replies are."""

    @property
    def knows_callers(self) -> bool:
        return self.api_key is not None or self.signing_secret is not None


def create_reward_app(scorer: Reward, settings: RewardEnvironment | None = None) -> FastAPI:
    """An app that answers the native protocol at `POST /`, with health routes and metrics.

    Images are decoded off the event loop; the function runs in one thread, one request at a time, since few
    scorers are thread-safe.
    """
    settings = settings or RewardEnvironment()  # pyright: ignore[reportCallIssue]
    registry = CollectorRegistry()
    items = Counter("lasro_reward_items", "Images by outcome", ["outcome"], registry=registry)
    seconds = Histogram("lasro_reward_seconds", "Time in the reward function per request", registry=registry)
    key = signing_key(settings.signing_secret.get_secret_value()) if settings.signing_secret is not None else None
    verifier = Verifier(key) if key is not None else None
    worker = ThreadPoolExecutor(1, "reward")
    waiting = 0

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        worker.shutdown(cancel_futures=True)

    async def ready() -> None:
        return None

    app = create_service(f"LaSRO reward {scorer.name}", settings, ready, lifespan, registry)

    @app.post(
        "/",
        tags=["reward"],
        summary=f"Score images by {scorer.name}",
        openapi_extra=message_body(wire.NativeRequest),
        response_model=wire.NativeReply | wire.PartialReply,
        responses=problems(422, 424, 503, 504),
    )
    async def score_images(request: Request) -> Response:
        """An image that cannot be scored has null and a reason in its place."""
        nonlocal waiting
        body = await read_body(request)
        if waiting >= settings.max_waiting:
            raise BusyError(f"{waiting} requests are in flight; try again later or raise LASRO_MAX_WAITING")
        waiting += 1
        give_up_s = time.monotonic() + _timeout_s(request.headers.get(wire.TIMEOUT_HEADER, ""))
        try:
            message_id = "" if verifier is None else verifier.check(request.headers, body.content)
            native = parse_message(body, wire.NativeRequest)
            images = await asyncio.to_thread(decode_images, native, settings)
            scores = await asyncio.get_running_loop().run_in_executor(worker, timed, images, native, give_up_s)
        finally:
            waiting -= 1
        rejected = sum(isinstance(each, RejectedItem) for each in scores)
        items.labels("rejected").inc(rejected)
        items.labels("scored").inc(len(scores) - rejected)
        response = reply(request, _message(scores))
        if key is not None:
            response.headers.update(signed_headers(key, reply_id(message_id), bytes(response.body)))
        return response

    def timed(images: list[Image.Image | RejectedItem], native: wire.NativeRequest, give_up_s: float) -> Scores:
        if time.monotonic() > give_up_s:
            raise TimeoutExceededError("not begun before the caller's time was up; is the reward overloaded?")
        with seconds.time():
            return _score_readable(scorer, images, native)

    return app


def _timeout_s(header: str) -> float:
    """The caller's limit in seconds; infinite where the header is no positive number, since any caller may set it."""
    try:
        seconds = float(header)
    except ValueError:
        return math.inf
    return seconds if seconds > 0 else math.inf


def decode_images(native: wire.NativeRequest, settings: RewardEnvironment) -> list[Image.Image | RejectedItem]:
    """RGB images, or the reason why one cannot be read; raises WireError when the whole request is unusable."""
    count = len(native.images)
    for name, entries in (("prompts", native.prompts), ("metadata", native.metadata)):
        if len(entries) != count:
            raise WireError(f"{name}: got {len(entries)}, expected one per image ({count})")
    left, images = settings.max_request_pixels, []
    for body in native.images:
        image = _readable(body, settings.max_pixels)
        if isinstance(image, Image.Image):
            left -= image.width * image.height
        if left < 0:
            limit = settings.max_request_pixels
            raise WireError(f"images: more than {limit} pixels in one request; send fewer images at a time")
        images.append(image)
    return images


def _readable(body: bytes, max_pixels: int) -> Image.Image | RejectedItem:
    try:
        return decode_image(body, max_pixels)
    except WireError as error:
        return RejectedItem(str(error))


def _score_readable(scorer: Reward, images: list[Image.Image | RejectedItem], native: wire.NativeRequest) -> Scores:
    """Score what could be decoded; the rest keeps its reason."""
    rows = [
        (image, prompt, metadata)
        for image, prompt, metadata in zip(images, native.prompts, native.metadata, strict=True)
        if isinstance(image, Image.Image)
    ]
    answers = iter(scorer([row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]))
    return [image if isinstance(image, RejectedItem) else next(answers) for image in images]


def _message(scores: Scores) -> wire.NativeReply | wire.PartialReply:
    numbers: list[float] = [score for score in scores if not isinstance(score, RejectedItem)]
    if len(numbers) == len(scores):
        return wire.NativeReply(scores=numbers)
    return wire.PartialReply(
        scores=[None if isinstance(score, RejectedItem) else score for score in scores],
        errors=[score.reason if isinstance(score, RejectedItem) else None for score in scores],
    )


E = TypeVar("E", bound=RewardEnvironment)


def serve_reward(kind: type[E], load: Callable[[E], Reward]) -> int:
    """Serve a reward by the settings in the environment until a signal; the exit status, with the reason on stderr."""
    try:
        settings = kind()  # pyright: ignore[reportCallIssue]
        run_service(create_reward_app(load(settings), settings), settings)
    except ValidationError as error:
        print(f"LASRO_* variables: {explain(error)}", file=sys.stderr)
        return 1
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m lasro.reward_sdk MODULE:FUNCTION", file=sys.stderr)
        return 2
    return serve_reward(RewardEnvironment, lambda _: load_reward(arguments[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
