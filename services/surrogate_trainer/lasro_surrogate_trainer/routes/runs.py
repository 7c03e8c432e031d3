"""Runs: created, listed, looked at and removed."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from lasro import wire
from lasro.config import SurrogateRun
from lasro.service.app import reply
from lasro.service.content_types import JSON_TYPE, read_body
from lasro.service.openapi import json_body, problems
from lasro_surrogate_trainer.request_bodies import read_run
from lasro_surrogate_trainer.routes.found_run import Found, Registry, RunName

router = APIRouter(tags=["runs"])


@router.get("/v1/runs", summary="All runs", response_model=wire.RunList, responses=problems())
async def list_runs(runs: Registry) -> wire.RunList:
    """By name."""
    return wire.RunList(runs=[run.status() for run in runs.all()])


@router.put(
    "/v1/runs/{run}",
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


@router.get("/v1/runs/{run}", summary="Status", response_model=wire.RunStatus, responses=problems(404, 422))
async def get_run(run: Found) -> wire.RunStatus:
    """Versions, steps, and how well the surrogate ranks what it has not seen."""
    return run.status()


@router.delete(
    "/v1/runs/{run}",
    summary="Remove a run, its weights and its keys in Redis",
    status_code=204,
    responses=problems(404, 422, 502, 507),
)
async def delete_run(runs: Registry, run: RunName) -> None:
    """A run that does not exist is not found."""
    await runs.delete(run)
