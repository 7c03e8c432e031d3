"""`/v1/score` scores at once; `/v1/runs/{run}/groups` takes groups to be scored in the background."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, FastAPI, Path, Query, Request, Response
from pydantic import Field, TypeAdapter, ValidationError

from lasro import wire
from lasro.errors import WireError
from lasro.redis_store.group_queue import GroupQueue, Limits
from lasro.service.app import parse_message, reply
from lasro.service.content_types import read_body
from lasro.service.logs import request_id
from lasro.service.openapi import BareRoute, header_parameter, message_body, problems
from lasro_reward_api.checks import check_group
from lasro_reward_api.deadline import Caller, Deadline
from lasro_reward_api.routes.responses import REDIS_PROBLEMS, answer
from lasro_reward_api.scoring import Scorer
from lasro_reward_api.settings import RewardApiSettings

RunName = Annotated[str, Path(pattern=wire.NAME_PATTERN, description="name of a run")]
GroupId = Annotated[str, Path(pattern=wire.NAME_PATTERN, description="id of a group within the run")]
Wait = Annotated[float, Query(ge=0, le=60, description="seconds to wait for the scores")]
TIMEOUT_S = TypeAdapter(Annotated[float, Field(gt=0, le=3600)])
FIRST_POLL_S, LONGEST_POLL_S = 0.01, 0.1


def add_score_route(app: FastAPI, scorer: Scorer, settings: RewardApiSettings) -> None:
    """`/v1/score`, on the app itself and bare: a router and a parameter would cost a fifth of a cached answer."""
    described = header_parameter(
        wire.TIMEOUT_HEADER, TIMEOUT_S, "seconds to answer in; what is not scored by then fails"
    )

    async def score_images(request: Request) -> Response:
        """An image that a reward cannot score has a status and no number; the others are not held up by it."""
        caller = Caller(Deadline.after(_limit_s(request, settings)), request_id())
        body = await read_body(request)
        with scorer.admission.request():
            return reply(request, await scorer.score(parse_message(body, wire.ScoreRequest), caller))

    app.router.add_api_route(
        "/v1/score",
        score_images,
        methods=["POST"],
        tags=["scoring"],
        summary="Score images by registered rewards",
        openapi_extra=message_body(wire.ScoreRequest) | described,
        responses=answer(200, wire.ScoreReply, "one item per image") | problems(404, 422, 429, *REDIS_PROBLEMS),
        route_class_override=BareRoute,
    )
    app.router.routes.insert(0, app.router.routes.pop())  # each route before it is tried first, at every request


def _limit_s(request: Request, settings: RewardApiSettings) -> float:
    """How long a score request may take; raises WireError for a timeout that is none."""
    given = request.headers.get(wire.TIMEOUT_HEADER)
    if given is None:
        return settings.request_timeout_s
    try:
        return min(TIMEOUT_S.validate_python(given), settings.request_timeout_s)
    except ValidationError as error:
        raise WireError(f"{wire.TIMEOUT_HEADER}: {error.errors()[0]['msg']}") from error


def group_routes(scorer: Scorer, queue: GroupQueue, settings: RewardApiSettings) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["scoring"])
    limits = Limits(settings.max_groups, settings.max_lag)

    @router.post(
        "/runs/{run}/groups",
        status_code=202,
        summary="Queue a group for scoring; the same group again changes nothing",
        openapi_extra=message_body(wire.GroupSubmission),
        responses=answer(202, wire.GroupAccepted, "queued or known") | problems(404, 409, 422, 429, *REDIS_PROBLEMS),
    )
    async def submit_group(request: Request, run: RunName) -> Response:
        """The group is in Redis before the answer; its scores go to the run's stream, and stay here to be read."""
        body = await read_body(request)
        with scorer.admission.request():
            submission = parse_message(body, wire.GroupSubmission)
            registrations = await scorer.registry.get_many(list(dict.fromkeys(submission.rewards)))
            await asyncio.to_thread(check_group, submission, scorer.images)
            calls = len(submission.images) * sum(found.spec.repeats for found in registrations)
            return reply(request, await queue.add(run, submission, calls, limits), 202)

    @router.get(
        "/runs/{run}/groups/{group_id}",
        summary="State and scores of a group, by long poll where `wait` is given",
        responses=answer(200, wire.GroupStatus, "as it is now") | problems(404, 422, *REDIS_PROBLEMS),
    )
    async def get_group(request: Request, run: RunName, group_id: GroupId, wait: Wait = 0.0) -> Response:
        """Waits for as long as asked, or until the group is scored or dead-lettered."""
        return reply(request, await wait_scored(queue, run, group_id, wait))

    return router


async def wait_scored(queue: GroupQueue, run: str, group_id: str, wait_s: float) -> wire.GroupStatus:
    """The group once it is scored or dead-lettered, or as it is after `wait_s` seconds; raises NotFoundError."""
    deadline, pause_s = time.monotonic() + wait_s, FIRST_POLL_S
    status = await queue.status(run, group_id)
    while status.state is wire.GroupState.QUEUED and (left_s := deadline - time.monotonic()) > 0:
        await asyncio.sleep(min(pause_s, left_s))
        pause_s = min(LONGEST_POLL_S, 1.5 * pause_s)
        if not await queue.is_queued(run, group_id):
            status = await queue.status(run, group_id)
    return status
