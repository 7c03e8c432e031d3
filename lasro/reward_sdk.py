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
import importlib
import logging
import math
import sys
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import update_wrapper
from numbers import Real
from typing import Any

from fastapi import FastAPI, Request, Response
from PIL import Image
from prometheus_client import CollectorRegistry, Counter, Histogram
from pydantic import Field, ValidationError

from lasro import wire
from lasro.errors import BusyError, ConfigError, LasroError, RewardError, WireError
from lasro.images import decode_image
from lasro.service_kit import ServiceEnvironment, create_service, message_body, problems, read_message, reply
from lasro.service_kit import run_service as serve

log = logging.getLogger("lasro")


@dataclass(frozen=True)
class RejectedItem:
    """Stands in a reward's list for an image that it cannot score; never counted as a number."""

    reason: str


Scores = list[float | RejectedItem]
RewardFunction = Callable[[list[Image.Image], list[str], list[Any]], Sequence[float | RejectedItem]]


class Reward:
    """A reward function whose answers are checked: one finite number or RejectedItem per image."""

    def __init__(self, function: RewardFunction) -> None:
        self._function = function
        self.name: str = getattr(function, "__name__", type(function).__name__)
        update_wrapper(self, function)

    def __call__(self, images: list[Image.Image], prompts: list[str], metadata: list[Any] | None = None) -> Scores:
        """Score RGB images; raises RewardError when the function fails or answers in another form."""
        given = [None] * len(images) if metadata is None else metadata
        try:
            answer = self._function(images, prompts, given)
        except LasroError:
            raise
        except Exception as error:  # the function is the user's: whatever it raises is reported under its name
            log.exception("%s failed", self.name)
            raise RewardError(f"{self.name}: raised {type(error).__name__}: {error}") from error
        return self._checked(answer, len(images))

    def _checked(self, answer: object, count: int) -> Scores:
        try:
            scores = list(answer)  # pyright: ignore[reportArgumentType]
        except TypeError as error:
            got = type(answer).__name__
            raise RewardError(f"{self.name}: returned {got}, expected a list of {count} numbers") from error
        if len(scores) != count:
            raise RewardError(f"{self.name}: returned {len(scores)} scores, expected one per image ({count})")
        return [self._number(score, index) for index, score in enumerate(scores)]

    def _number(self, score: object, index: int) -> float | RejectedItem:
        if isinstance(score, RejectedItem):
            return score
        if getattr(score, "shape", None) == ():  # a 0-d array or tensor
            score = score.item()  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(score, bool) or not isinstance(score, Real) or not math.isfinite(score):
            wanted = "a finite number or RejectedItem(reason)"
            raise RewardError(f"{self.name}: scores[{index}] is {score!r:.60}, expected {wanted}")
        return float(score)


def reward(function: RewardFunction) -> Reward:
    """Declare `function(images, prompts, metadata) -> list of float or RejectedItem` as a reward."""
    return Reward(function)


class RewardEnvironment(ServiceEnvironment):
    """Settings of a reward endpoint."""

    max_pixels: int = Field(1 << 24, ge=1)
    """Largest image, in pixels; a bigger one is rejected before it is decoded."""
    max_request_pixels: int = Field(1 << 28, ge=1)
    """Largest sum over the images of one request."""
    max_waiting: int = Field(32, ge=1)
    """Requests in hand at once; further ones are answered 503."""


def create_reward_app(scorer: Reward, settings: RewardEnvironment | None = None) -> FastAPI:
    """An app that answers the native protocol at `POST /`, with health routes and metrics.

    Images are decoded off the event loop; the function runs in one thread, one request at a time, since few
    scorers are thread-safe.
    """
    settings = settings or RewardEnvironment()  # pyright: ignore[reportCallIssue]
    registry = CollectorRegistry()
    items = Counter("lasro_reward_items", "Images by outcome", ["outcome"], registry=registry)
    seconds = Histogram("lasro_reward_seconds", "Time in the reward function per request", registry=registry)
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
        summary=f"Score images by {scorer.name}",
        openapi_extra=message_body(wire.NativeRequest),
        response_model=wire.NativeReply | wire.PartialReply,
        responses=problems(422, 424, 503),
    )
    async def score(request: Request) -> Response:
        nonlocal waiting
        if waiting >= settings.max_waiting:
            raise BusyError(f"{waiting} requests are in hand; try again later or raise LASRO_MAX_WAITING")
        waiting += 1
        try:
            native = await read_message(request, wire.NativeRequest)
            images = await asyncio.to_thread(decode_images, native, settings)
            scores = await asyncio.get_running_loop().run_in_executor(worker, timed, images, native)
        finally:
            waiting -= 1
        rejected = sum(isinstance(each, RejectedItem) for each in scores)
        items.labels("rejected").inc(rejected)
        items.labels("scored").inc(len(scores) - rejected)
        return reply(request, _message(scores))

    def timed(images: list[Image.Image | RejectedItem], native: wire.NativeRequest) -> Scores:
        with seconds.time():
            return _score_readable(scorer, images, native)

    return app


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


def load_reward(target: str) -> Reward:
    """Import `module:function`; raises ConfigError where that is no reward."""
    module_name, separator, name = target.partition(":")
    if not separator:
        raise ConfigError(f"got {target!r}, expected MODULE:FUNCTION")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{target}: cannot import {module_name} ({error}); is it on PYTHONPATH?") from error
    found = getattr(module, name, None)
    if not isinstance(found, Reward):
        got = "nothing" if found is None else type(found).__name__
        raise ConfigError(f"{target}: got {got}, expected a function decorated with @reward")
    return found


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python -m lasro.reward_sdk MODULE:FUNCTION", file=sys.stderr)
        return 2
    try:
        settings = RewardEnvironment()  # pyright: ignore[reportCallIssue]
        serve(create_reward_app(load_reward(arguments[0]), settings), settings)
    except ValidationError as error:
        print(f"LASRO_* variables: {wire.explain(error)}", file=sys.stderr)
        return 1
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # As `__main__` this file is a second copy of the module that rewards import, with another Reward class.
    from lasro import reward_sdk

    sys.exit(reward_sdk.main(sys.argv[1:]))
