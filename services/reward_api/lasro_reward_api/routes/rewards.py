"""`/v1/rewards`: register, list, read, change, delete and probe reward endpoints."""

from __future__ import annotations

import io
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from PIL import Image, ImageDraw

from lasro import wire
from lasro.errors import ConfigError, WireError
from lasro.redis_store.registry import Registration, RewardRegistry
from lasro.service.app import read_message, reply
from lasro.service.logs import request_id
from lasro.service.openapi import message_body, problems
from lasro.service.signing import is_signing_secret, signing_key
from lasro_reward_api.deadline import Caller, Deadline
from lasro_reward_api.endpoints.address_guard import check_headers, check_url
from lasro_reward_api.endpoints.batching import Item
from lasro_reward_api.endpoints.pool import EndpointPool
from lasro_reward_api.protocols import CODECS, images_per_call
from lasro_reward_api.routes.responses import REDIS_PROBLEMS, answer
from lasro_reward_api.scoring import Scorer

RewardName = Annotated[str, Path(pattern=wire.NAME_PATTERN, description="name of a reward")]
Limit = Annotated[int | None, Query(ge=1, le=1000, description="most rewards to list; absent: all")]
After = Annotated[str, Query(max_length=64, description="only names after this one: the last of the page before")]
PROBE_PROMPT = "a red circle and a blue square"


def reward_routes(registry: RewardRegistry, scorer: Scorer, endpoints: EndpointPool) -> APIRouter:
    router = APIRouter(prefix="/v1/rewards", tags=["rewards"])
    _add_collection(router, registry)
    _add_single(router, registry, endpoints)

    @router.post(
        "/{name}/probe",
        summary="Call a reward once with a known image",
        responses=answer(200, wire.ProbeReply, "what the call showed") | problems(404, 422, *REDIS_PROBLEMS),
    )
    async def probe_reward(request: Request, name: RewardName) -> Response:
        """Past the cache, the queue and an open circuit; what went wrong is in the answer."""
        with scorer.admission.request():
            registration = await registry.get(name)
            caller = Caller(Deadline.after(registration.spec.timeout_s), request_id())
            score = await scorer.probe(registration, Item(PROBE_PROMPT, probe_image(), None), caller)
        return reply(request, wire.ProbeReply(**{key: score[key] for key in wire.ProbeReply.model_fields}))

    return router


def _add_collection(router: APIRouter, registry: RewardRegistry) -> None:
    @router.post(
        "",
        status_code=201,
        summary="Register a reward endpoint; it is not called",
        openapi_extra=message_body(wire.RewardSpec),
        responses=answer(201, wire.RewardInfo, "registered") | problems(409, 422, *REDIS_PROBLEMS),
    )
    async def register_reward(request: Request) -> Response:
        """A name in use is refused; PUT changes what is there."""
        spec = checked_spec(await read_message(request, wire.RewardSpec))
        registration, _ = await registry.put(spec, replace=False)
        return reply(request, to_reward_info(registration), 201)

    @router.get(
        "",
        summary="Registered rewards, all or a page of them",
        responses=answer(200, wire.RewardList, "by name") | problems(422, *REDIS_PROBLEMS),
    )
    async def list_rewards(request: Request, limit: Limit = None, after: After = "") -> Response:
        """Secrets and values of headers are left out."""
        found = await registry.list(after, limit)
        return reply(request, wire.RewardList(rewards=[to_reward_info(one) for one in found]))


def _add_single(router: APIRouter, registry: RewardRegistry, endpoints: EndpointPool) -> None:
    @router.get(
        "/{name}",
        summary="One registered reward",
        responses=answer(200, wire.RewardInfo, "as registered") | problems(404, 422, *REDIS_PROBLEMS),
    )
    async def get_reward(request: Request, name: RewardName) -> Response:
        """Its secret and the values of its headers are left out."""
        return reply(request, to_reward_info(await registry.get(name)))

    @router.put(
        "/{name}",
        summary="Register a reward, or change it, which makes a new version",
        openapi_extra=message_body(wire.RewardSpec),
        responses=answer(200, wire.RewardInfo, "changed")
        | answer(201, wire.RewardInfo, "registered")
        | problems(422, *REDIS_PROBLEMS),
    )
    async def put_reward(request: Request, name: RewardName) -> Response:
        """Scores of the version before are no longer found in the cache."""
        spec = checked_spec(await read_message(request, wire.RewardSpec))
        if spec.name != name:
            raise WireError(f"name: got {spec.name}, expected the one in the path ({name})")
        registration, is_new = await registry.put(spec, replace=True)
        return reply(request, to_reward_info(registration), 201 if is_new else 200)

    @router.delete(
        "/{name}",
        status_code=204,
        summary="Forget a reward",
        responses={204: {"description": "forgotten"}} | problems(404, 422, *REDIS_PROBLEMS),
    )
    async def delete_reward(name: RewardName) -> Response:
        """Requests under way are still answered."""
        await registry.delete(name)
        await endpoints.forget(name)
        return Response(status_code=204)


def checked_spec(spec: wire.RewardSpec) -> wire.RewardSpec:
    """`spec` again where it can be served; raises ConfigError or BlockedError. Nothing is called or resolved."""
    CODECS[spec.protocol].check(spec.mapping or {})
    check_url(spec.url)
    check_headers(spec.headers, spec.secret)
    if spec.signed_replies or is_signing_secret(spec.secret):
        signing_key(spec.secret or "")
    try:
        spec.model_dump_json().encode()
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"reward {spec.name}: cannot be stored as JSON ({error})") from error
    return spec


def to_reward_info(registration: Registration) -> wire.RewardInfo:
    """What the API shows of a registered reward."""
    return registration.info(images_per_call(registration.spec))


def probe_image() -> bytes:
    """A 128 x 128 PNG that fits PROBE_PROMPT."""
    image = Image.new("RGB", (128, 128), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((8, 40, 56, 88), fill=(220, 30, 30))
    draw.rectangle((72, 40, 120, 88), fill=(30, 60, 220))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
