"""Training of a run's surrogate, and its weights by version."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response

from lasro import wire
from lasro.service.app import read_message, reply
from lasro.service.openapi import message_body, problems
from lasro_surrogate_trainer.routes.found_run import Found
from lasro_surrogate_trainer.tensor_messages import TENSOR_BODY, TENSORS, tensor_body, tensor_reply

MAX_WAIT_S = 300.0
Version = Annotated[int, Path(ge=0, lt=10**12, description="of the surrogate; 0 is the one that the run began with")]
Wait = Annotated[float, Query(ge=0, le=MAX_WAIT_S, description="seconds to wait for a newer version")]
Known = Annotated[str, Header(description="the ETag of the version that is there already")]

router = APIRouter(tags=["training"])


@router.post(
    "/v1/runs/{run}/adapt",
    summary="Train for some steps once the named groups are there",
    response_model=wire.AdaptReply,
    responses=problems(404, 409, 422, 504, 507),
    openapi_extra=message_body(wire.AdaptRequest),
)
async def adapt_surrogate(request: Request, run: Found) -> Response:
    """Reproducible: the groups are taken by round and index, never by arrival."""
    return reply(request, await run.adapt(await read_message(request, wire.AdaptRequest)))


@router.put(
    "/v1/runs/{run}/weights",
    summary="Start from these weights; refused once trained",
    response_model=wire.RunStatus,
    responses=problems(404, 409, 422, 507),
    openapi_extra=TENSOR_BODY,
)
async def upload_weights(request: Request, run: Found) -> Response:
    """A safetensors file of the names and shapes that the run's surrogate has."""
    await run.upload(await tensor_body(request))
    return reply(request, run.status())


@router.get(
    "/v1/runs/{run}/weights",
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


@router.get(
    "/v1/runs/{run}/weights/{version}",
    summary="What is trained, as of one version",
    response_class=Response,
    responses={200: {"content": TENSORS}, **problems(404, 422)},
)
async def get_weights(request: Request, run: Found, version: Version) -> Response:
    """Versions are kept for a while, and for as long as a lease says."""
    return tensor_reply(request, *await run.weights(version))


@router.get(
    "/v1/runs/{run}/versions",
    summary="What is known of each version",
    response_model=wire.VersionList,
    responses=problems(404, 422),
)
async def list_versions(run: Found) -> wire.VersionList:
    """Oldest first."""
    return wire.VersionList(versions=await asyncio.to_thread(run.versions))


@router.put(
    "/v1/runs/{run}/lease",
    summary="Keep a version and all later ones until the next lease: those of rounds that may be repeated",
    response_model=wire.RunStatus,
    responses=problems(404, 422, 507),
    openapi_extra=message_body(wire.Lease),
)
async def set_lease(request: Request, run: Found) -> Response:
    """A client that may go back to a round keeps the weights of that round so."""
    await run.lease((await read_message(request, wire.Lease)).version)
    return reply(request, run.status())
