"""What the surrogate says: scores, and their gradients."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response

from lasro import wire
from lasro.errors import WireError
from lasro.service.app import parse_message, reply
from lasro.service.content_types import MESSAGE_TYPES, read_body
from lasro.service.openapi import message_body, problems
from lasro_surrogate_trainer.request_bodies import read_gradient, read_images, read_latents
from lasro_surrogate_trainer.routes.found_run import Found
from lasro_surrogate_trainer.tensor_messages import TENSOR_BODY, TENSORS, tensor_body, tensor_reply

SCORE_BODY = message_body(wire.SurrogateScoreRequest)
# Not as plain bytes too: what openapi-python-client makes of two kinds of body that it knows cannot be imported.
SCORE_BODY["requestBody"]["content"][wire.SAFETENSORS_TYPE] = TENSORS[wire.SAFETENSORS_TYPE]

router = APIRouter(tags=["surrogate"])


@router.post(
    "/v1/runs/{run}/score",
    summary="Scores of images, or of `latents` [B, C, H, W] with `prompts` in the header metadata",
    response_model=wire.SurrogateScoreReply,
    responses=problems(404, 422),
    openapi_extra=SCORE_BODY,
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


@router.post(
    "/v1/runs/{run}/gradient",
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
