"""HTTP routes of the surrogate trainer."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Path, Query, Request, Response
from prometheus_client import CollectorRegistry

from lasro import wire
from lasro.config import SurrogateRun
from lasro.errors import BusyError, WireError
from lasro.folder_lock import hold_folder
from lasro.redis_store.connection import connect
from lasro.service.app import create_service, read_message, reply
from lasro.service.openapi import message_body, problems
from lasro_surrogate_trainer.metrics import RunMetrics
from lasro_surrogate_trainer.request_bodies import read_gradient, read_images, read_latents
from lasro_surrogate_trainer.run_actor import RunActor
from lasro_surrogate_trainer.run_registry import RunRegistry
from lasro_surrogate_trainer.settings import TrainerEnvironment
from lasro_surrogate_trainer.store import ADVICE

READY_TIMEOUT_S = 10.0
MAX_WAIT_S = 300.0
LOCK_WAIT_S = 30.0
"""A trainer whose parent was killed may still finish a step and save its optimiser."""
IN_USE = "another trainer works in this folder"  # it would overwrite the commits of the first
BINARY = {"schema": {"type": "string", "format": "binary"}}
TENSORS = {wire.SAFETENSORS_TYPE: BINARY}
TENSOR_BODY = {"requestBody": {"required": True, "content": TENSORS}}
RunName = Annotated[str, Path(pattern=wire.NAME_PATTERN)]


def _registry(request: Request) -> RunRegistry:
    return request.app.state.runs


def _find(request: Request, run: RunName) -> RunActor:
    return _registry(request).get(run)


Registry = Annotated[RunRegistry, Depends(_registry)]
Found = Annotated[RunActor, Depends(_find)]


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _tensor_body(request: Request) -> bytes:
    if _content_type(request) != wire.SAFETENSORS_TYPE:
        raise WireError(f"content type: got {_content_type(request)!r}, expected {wire.SAFETENSORS_TYPE}")
    return await request.body()


def _tensors(version: int, body: bytes) -> Response:
    return Response(body, headers={"ETag": f'"{version}"'}, media_type=wire.SAFETENSORS_TYPE)


def create_app(settings: TrainerEnvironment) -> FastAPI:
    """The service; raises ConfigError without a usable LASRO_REDIS_URL. Runs on disk are recovered when it starts."""
    url = settings.redis_url.get_secret_value() if settings.redis_url else None
    runs = RunRegistry(settings, connect(url))
    metrics = CollectorRegistry()

    async def ready() -> None:
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await runs.check()
        except TimeoutError as error:
            raise BusyError(f"Redis or a model did not answer within {READY_TIMEOUT_S:g} s") from error

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with hold_folder(settings.data_dir, IN_USE, "stop it, or set another LASRO_DATA_DIR", LOCK_WAIT_S, ADVICE):
            await runs.recover()
            yield
            await runs.close()

    app = create_service("LaSRO surrogate trainer", settings, ready, lifespan, metrics)
    app.state.runs = runs
    metrics.register(RunMetrics(runs.all))
    _add_run_routes(app)
    _add_training_routes(app)
    _add_serving_routes(app)
    return app


def _add_run_routes(
    app: FastAPI,
) -> None:
    @app.get("/v1/runs", summary="All runs", response_model=wire.RunList)
    async def list_runs(runs: Registry) -> wire.RunList:
        return wire.RunList(runs=[run.status() for run in runs.all()])

    @app.put(
        "/v1/runs/{run}",
        summary="Create a run; again with the same settings changes nothing",
        response_model=wire.RunStatus,
        status_code=201,
        responses={200: {"model": wire.RunStatus}, **problems(409, 422, 503, 507)},
    )
    async def create_run(request: Request, runs: Registry, run: RunName, config: SurrogateRun) -> Response:
        made, is_new = await runs.create(run, config)
        return reply(request, made.status(), 201 if is_new else 200)

    @app.get("/v1/runs/{run}", summary="Status", response_model=wire.RunStatus, responses=problems(404, 422))
    async def get_run(run: Found) -> wire.RunStatus:
        return run.status()

    @app.delete(
        "/v1/runs/{run}",
        summary="Remove a run, its weights and its keys in Redis",
        status_code=204,
        responses=problems(404, 422, 502, 507),
    )
    async def delete_run(runs: Registry, run: RunName) -> None:
        await runs.delete(run)


def _add_training_routes(
    app: FastAPI,
) -> None:
    @app.post(
        "/v1/runs/{run}/adapt",
        summary="Train for some steps once the named groups are there",
        response_model=wire.AdaptReply,
        responses=problems(404, 409, 422, 504, 507),
        openapi_extra=message_body(wire.AdaptRequest),
    )
    async def adapt(request: Request, run: Found) -> Response:
        return reply(request, await run.adapt(await read_message(request, wire.AdaptRequest)))

    @app.put(
        "/v1/runs/{run}/weights",
        summary="Start from these weights; refused once trained",
        response_model=wire.RunStatus,
        responses=problems(404, 409, 422, 507),
        openapi_extra=TENSOR_BODY,
    )
    async def upload_weights(request: Request, run: Found) -> Response:
        await run.upload(await _tensor_body(request))
        return reply(request, run.status())

    @app.get(
        "/v1/runs/{run}/weights",
        summary="What is trained, newest version; If-None-Match with `wait` polls for a newer one",
        response_class=Response,
        responses={200: {"content": TENSORS}, 304: {"description": "none newer"}, **problems(404, 422)},
    )
    async def newest_weights(
        run: Found,
        wait: Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="seconds")] = 0.0,
        if_none_match: Annotated[str, Header()] = "",
    ) -> Response:
        known = [int(tag) for tag in re.findall(r'"([0-9]{1,12})"', if_none_match)]
        if known and not await run.newer_than(max(known), wait):
            return Response(status_code=304, headers={"ETag": f'"{run.version}"'})
        return _tensors(*await run.weights())

    @app.get(
        "/v1/runs/{run}/weights/{version}",
        summary="What is trained, as of one version",
        response_class=Response,
        responses={200: {"content": TENSORS}, **problems(404, 422)},
    )
    async def weights(run: Found, version: Annotated[int, Path(ge=0, lt=10**12)]) -> Response:
        return _tensors(*await run.weights(version))

    @app.get(
        "/v1/runs/{run}/versions",
        summary="What is known of each version",
        response_model=wire.VersionList,
        responses=problems(404, 422),
    )
    async def versions(run: Found) -> wire.VersionList:
        return wire.VersionList(versions=await asyncio.to_thread(run.versions))

    @app.put(
        "/v1/runs/{run}/lease",
        summary="Keep a version and all later ones until the next lease: those of rounds that may be repeated",
        response_model=wire.RunStatus,
        responses=problems(404, 422, 507),
        openapi_extra=message_body(wire.Lease),
    )
    async def lease(request: Request, run: Found) -> Response:
        await run.lease((await read_message(request, wire.Lease)).version)
        return reply(request, run.status())


def _add_serving_routes(
    app: FastAPI,
) -> None:
    score_body = message_body(wire.SurrogateScoreRequest)
    score_body["requestBody"]["content"] |= TENSORS

    @app.post(
        "/v1/runs/{run}/score",
        summary="Scores of images, or of `latents` [B, C, H, W] with `prompts` in the header metadata",
        response_model=wire.SurrogateScoreReply,
        responses=problems(404, 422),
        openapi_extra=score_body,
    )
    async def score(request: Request, run: Found) -> Response:
        if _content_type(request) == wire.SAFETENSORS_TYPE:
            body = await asyncio.to_thread(read_latents, await request.body(), run.frozen.model.latent_shape)
            return reply(request, await run.score(body))
        message = await read_message(request, wire.SurrogateScoreRequest)
        if len(message.images) != len(message.prompts):
            raise WireError(f"images: got {len(message.images)}, expected one per prompt ({len(message.prompts)})")
        images_BHWC = await asyncio.to_thread(read_images, message.images, run.frozen.model.image_size)
        return reply(request, await run.score_images(images_BHWC, message.prompts))

    @app.post(
        "/v1/runs/{run}/gradient",
        summary="Scores and their gradients: `latents`, `timesteps`, `noise`; `prompts`, `version` in the metadata",
        response_class=Response,
        responses={200: {"content": TENSORS}, **problems(404, 422)},
        openapi_extra=TENSOR_BODY,
    )
    async def gradient(request: Request, run: Found) -> Response:
        raw, shape = await _tensor_body(request), run.frozen.model.latent_shape
        body = await asyncio.to_thread(read_gradient, raw, shape, run.config.surrogate.max_timestep)
        version, scores_B, gradient_BCHW = await run.gradient(body)
        tensors = {"scores": scores_B, "gradient": gradient_BCHW}
        return _tensors(version, wire.pack_tensors(tensors, {"version": str(version)}))
