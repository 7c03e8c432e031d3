"""Pieces of request bodies that several protocols share."""

from __future__ import annotations

import json

import pybase64

from lasro_reward_api.protocols.base import HttpRequest

IMAGE_TYPES = ((b"\x89PNG", "image/png"), (b"\xff\xd8", "image/jpeg"))


def base64_text(image: bytes) -> str:
    return pybase64.b64encode_as_string(image)


def image_type(image: bytes) -> str:
    """The media type of a PNG, JPEG or WebP, which is all that passes the API's own check."""
    return next((kind for magic, kind in IMAGE_TYPES if image.startswith(magic)), "image/webp")


def json_parts(value: object, path: str = "") -> HttpRequest:
    """A POST of `value` as JSON to `path` below the registered URL."""
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    return HttpRequest(json.dumps(value).encode(), headers, path)
