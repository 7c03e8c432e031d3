"""Safetensors as bodies of requests and answers, under their media type or as bytes of no stated kind."""

from __future__ import annotations

from fastapi import Request, Response

from lasro import wire
from lasro.service.content_types import read_body
from lasro.service.openapi import BINARY_TYPE, WRONG_TYPE, tensor_content

TENSORS = tensor_content()
TENSOR_BODY = {"requestBody": {"required": True, "content": TENSORS}, "responses": WRONG_TYPE}


async def tensor_body(request: Request) -> bytes:
    """The body of a request that must be safetensors; one of another content type is refused."""
    return (await read_body(request, tuple(TENSORS))).content


def tensor_reply(request: Request, version: int, body: bytes) -> Response:
    """Safetensors of one version of the surrogate, as the ETag says; as plain bytes where only those are accepted."""
    accepted = request.headers.get("accept", "")
    kind = BINARY_TYPE if BINARY_TYPE in accepted and wire.SAFETENSORS_TYPE not in accepted else wire.SAFETENSORS_TYPE
    return Response(body, headers={"ETag": f'"{version}"'}, media_type=kind)
