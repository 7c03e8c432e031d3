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
from lasro.models.frozen import ModelCache
from lasro.redis_store.connection import connect
from lasro.service.app import create_service, parse_message, read_message, reply
from lasro.service.content_types import JSON_TYPE, MESSAGE_TYPES, read_body
from lasro.service.openapi import json_body, message_body, problems
from lasro_surrogate_trainer.metrics import RunMetrics
from lasro_surrogate_trainer.request_bodies import read_gradient, read_images, read_latents, read_run
from lasro_surrogate_trainer.run_actor import RunActor
from lasro_surrogate_trainer.run_registry import RunRegistry
from lasro_surrogate_trainer.settings import TrainerEnvironment
from lasro_surrogate_trainer.store import ADVICE
from lasro_surrogate_trainer.tensor_messages import TENSOR_BODY, TENSORS, tensor_body, tensor_reply

READY_TIMEOUT_S = 10.0
MAX_WAIT_S = 300.0
LOCK_WAIT_S = 30.0
"""A trainer whose parent was killed may still finish a step and save its optimiser."""
IN_USE = "another trainer works in this folder"  # it would overwrite the commits of the first
RunName = Annotated[str, Path(pattern=wire.NAME_PATTERN, description="name of a run")]
Version = Annotated[int, Path(ge=0, lt=10**12, description="of the surrogate; 0 is the one that the run began with")]
Wait = Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="seconds to wait for a newer version")]
Known = Annotated[str, Header(description="the ETag of the version that is there already")]


def _registry(request: Request) -> RunRegistry:
    return request.app.state.runs


def _find(request: Request, run: RunName) -> RunActor:
    return _registry(request).get(run)


Registry = Annotated[RunRegistry, Depends(_registry)]
Found = Annotated[RunActor, Depends(_find)]


def create_app(settings: TrainerEnvironment, models: ModelCache | None = None) -> FastAPI:
    """The service; raises ConfigError without a usable LASRO_REDIS_URL. Runs on disk are recovered when it starts.

    `models`: those that are loaded already.
    """
    url = settings.redis_url.get_secret_value() if settings.redis_url else None
    runs = RunRegistry(settings, connect(url), models or ModelCache())
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
    @app.get("/v1/runs", tags=["runs"], summary="All runs", response_model=wire.RunList, responses=problems())
    async def list_runs(runs: Registry) -> wire.RunList:
        """By name."""
        return wire.RunList(runs=[run.status() for run in runs.all()])

    @app.put(
        "/v1/runs/{run}",
        tags=["runs"],
        summary="Create a run; again with the same settings changes nothing",
        response_model=wire.RunStatus,
        status_code=201,
        responses={200: {"model": wire.RunStatus}, **problems(409, 422, 503, 507)},
        openapi_extra=json_body(SurrogateRun),
    )
    async def create_run(request: Request, runs: Registry, run: RunName) -> Response:
        """Other settings for a run that exists are refused."""
        body = await read_body(request, (JSON_TYPE,))
        made, is_new = await runs.create(run, read_run(body.content))
        return reply(request, made.status(), 201 if is_new else 200)

    @app.get(
        "/v1/runs/{run}", tags=["runs"], summary="Status", response_model=wire.RunStatus, responses=problems(404, 422)
    )
    async def get_run(run: Found) -> wire.RunStatus:
        """Versions, steps, and how well the surrogate ranks what it has not seen."""
        return run.status()

    @app.delete(
        "/v1/runs/{run}",
        tags=["runs"],
        summary="Remove a run, its weights and its keys in Redis",
        status_code=204,
        responses=problems(404, 422, 502, 507),
    )
    async def delete_run(runs: Registry, run: RunName) -> None:
        """A run that does not exist is not found."""
        await runs.delete(run)


def _add_training_routes(
    app: FastAPI,
) -> None:
    @app.post(
        "/v1/runs/{run}/adapt",
        tags=["training"],
        summary="Train for some steps once the named groups are there",
        response_model=wire.AdaptReply,
        responses=problems(404, 409, 422, 504, 507),
        openapi_extra=message_body(wire.AdaptRequest),
    )
    async def adapt_surrogate(request: Request, run: Found) -> Response:
        """Reproducible: the groups are taken by round and index, never by arrival."""
        return reply(request, await run.adapt(await read_message(request, wire.AdaptRequest)))

    @app.put(
        "/v1/runs/{run}/weights",
        tags=["training"],
        summary="Start from these weights; refused once trained",
        response_model=wire.RunStatus,
        responses=problems(404, 409, 422, 507),
        openapi_extra=TENSOR_BODY,
    )
    async def upload_weights(request: Request, run: Found) -> Response:
        """A safetensors file of the names and shapes that the run's surrogate has."""
        await run.upload(await tensor_body(request))
        return reply(request, run.status())

    @app.get(
        "/v1/runs/{run}/weights",
        tags=["training"],
        summary="What is trained, newest version; If-None-Match with `wait` polls for a newer one",
        response_class=Response,
        responses={200: {"content": TENSORS}, 304: {"description": "none newer"}, **problems(404, 422)},
    )
    async def get_newest_weights(
        run: Found,
        request: Request,
        wait: Wait = 0.0,
        if_none_match: Known = "",
    ) -> Response:
        """The version is in the ETag."""
        known = [int(tag) for tag in re.findall(r'"([0-9]{1,12})"', if_none_match)]
        if known and not await run.newer_than(max(known), wait):
            return Response(status_code=304, headers={"ETag": f'"{run.version}"'})
        return tensor_reply(request, *await run.weights())

    @app.get(
        "/v1/runs/{run}/weights/{version}",
        tags=["training"],
        summary="What is trained, as of one version",
        response_class=Response,
        responses={200: {"content": TENSORS}, **problems(404, 422)},
    )
    async def get_weights(request: Request, run: Found, version: Version) -> Response:
        """Versions are kept for a while, and for as long as a lease says."""
        return tensor_reply(request, *await run.weights(version))

    @app.get(
        "/v1/runs/{run}/versions",
        tags=["training"],
        summary="What is known of each version",
        response_model=wire.VersionList,
        responses=problems(404, 422),
    )
    async def list_versions(run: Found) -> wire.VersionList:
        """Oldest first."""
        return wire.VersionList(versions=await asyncio.to_thread(run.versions))

    @app.put(
        "/v1/runs/{run}/lease",
        tags=["training"],
        summary="Keep a version and all later ones until the next lease: those of rounds that may be repeated",
        response_model=wire.RunStatus,
        responses=problems(404, 422, 507),
        openapi_extra=message_body(wire.Lease),
    )
    async def set_lease(request: Request, run: Found) -> Response:
        """A client that may go back to a round keeps the weights of that round so."""
        await run.lease((await read_message(request, wire.Lease)).version)
        return reply(request, run.status())


def _add_serving_routes(
    app: FastAPI,
) -> None:
    score_body = message_body(wire.SurrogateScoreRequest)
    # Not as plain bytes too: what openapi-python-client makes of two kinds of body that it knows cannot be imported.
    score_body["requestBody"]["content"][wire.SAFETENSORS_TYPE] = TENSORS[wire.SAFETENSORS_TYPE]

    @app.post(
        "/v1/runs/{run}/score",
        tags=["surrogate"],
        summary="Scores of images, or of `latents` [B, C, H, W] with `prompts` in the header metadata",
        response_model=wire.SurrogateScoreReply,
        responses=problems(404, 422),
        openapi_extra=score_body,
    )
    async def score_samples(request: Request, run: Found) -> Response:
        """Images are encoded by the model's VAE, and must have its size."""
        body = await read_body(request, (*MESSAGE_TYPES, wire.SAFETENSORS_TYPE))
        if body.content_type == wire.SAFETENSORS_TYPE:
            latents = await asyncio.to_thread(read_latents, body.content, run.frozen.model.latent_shape)
            return reply(request, await run.score(latents))
        message = parse_message(body, wire.SurrogateScoreRequest)
        if len(message.images) != len(message.prompts):
            raise WireError(f"images: got {len(message.images)}, expected one per prompt ({len(message.prompts)})")
        images_BHWC = await asyncio.to_thread(read_images, message.images, run.frozen.model.image_size)
        return reply(request, await run.score_images(images_BHWC, message.prompts))

    @app.post(
        "/v1/runs/{run}/gradient",
        tags=["surrogate"],
        summary="Scores and their gradients: `latents`, `timesteps`, `noise`; `prompts`, `version` in the metadata",
        response_class=Response,
        responses={200: {"content": TENSORS}, **problems(404, 422)},
        openapi_extra=TENSOR_BODY,
    )
    async def compute_gradient(request: Request, run: Found) -> Response:
        """Answers `scores` [B] and `gradient` [B, C, H, W], the derivatives of the scores by the latents."""
        raw, shape = await tensor_body(request), run.frozen.model.latent_shape
        body = await asyncio.to_thread(read_gradient, raw, shape, run.config.surrogate.max_timestep)
        version, scores_B, gradient_BCHW = await run.gradient(body)
        tensors = {"scores": scores_B, "gradient": gradient_BCHW}
        return tensor_reply(request, version, wire.pack_tensors(tensors, {"version": str(version)}))
