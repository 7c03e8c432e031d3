"""LaSRO's own protocol, the one a user writes an endpoint for.

POST {"prompts": [...], "images": [base64 PNG ...], "metadata": [...]} -> {"scores": [...]}, one finite number per
image. A score may be null only beside "errors": [...] of the same length, which says why there.
With `mapping = {"encoding": "msgpack"}` the same maps travel as msgpack, images as bytes.
"""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pybase64

from lasro import wire
from lasro.errors import ConfigError, WireError
from lasro_reward_api.protocols.base import Batch, HttpRequest, ItemResult, ProtocolCodec, Settings
from lasro_reward_api.protocols.replies import json_object, number_list, score_or_reason

ENCODINGS = ("json", "msgpack")


def check(settings: Settings) -> None:
    if unknown := set(settings) - {"encoding"}:
        raise ConfigError(f"mapping: got {sorted(unknown)}, native knows only 'encoding'")
    if settings.get("encoding", "json") not in ENCODINGS:
        raise ConfigError(f"mapping.encoding: got {settings['encoding']!r}, expected one of {', '.join(ENCODINGS)}")


def encode(batch: Batch, settings: Settings) -> HttpRequest:
    if settings.get("encoding", "json") == "msgpack":
        request = wire.NativeRequest(prompts=batch.prompts, images=batch.images, metadata=batch.metadata)
        content_type, content = wire.MSGPACK_TYPE, wire.to_msgpack(request)
    else:
        content_type, content = "application/json", _json(batch)
    return HttpRequest(content, {"Content-Type": content_type, "Accept": content_type})


def _json(batch: Batch) -> bytes:
    """wire.NativeRequest as JSON, put together here: base64 needs no look at each letter for what to escape."""
    prompts, metadata = (json.dumps(values).encode() for values in (batch.prompts, batch.metadata))
    images = b'","'.join(map(pybase64.b64encode, batch.images))
    return b'{"prompts": %b, "images": ["%b"], "metadata": %b}' % (prompts, images, metadata)


def decode(content_type: str, body: bytes, count: int, settings: Settings) -> list[ItemResult]:
    if content_type.partition(";")[0].strip() == wire.MSGPACK_TYPE:
        reply = _msgpack_object(body)
    else:
        reply = json_object(content_type, body)
    scores = number_list(reply, "scores", count)
    errors = [None] * count if reply.get("errors") is None else number_list(reply, "errors", count)
    return [
        score_or_reason(score, error, index) for index, (score, error) in enumerate(zip(scores, errors, strict=True))
    ]


def _msgpack_object(body: bytes) -> dict[str, Any]:
    try:
        value = msgpack.unpackb(body, raw=False, strict_map_key=True)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise WireError(f"reply: got {len(body)} bytes that are not one msgpack map") from error
    if not isinstance(value, dict):
        raise WireError(f"reply: got a msgpack {type(value).__name__}, expected a map")
    return value


CODEC = ProtocolCodec(check, encode, decode)
