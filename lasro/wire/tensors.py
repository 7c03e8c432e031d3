"""Tensors as safetensors bytes, prompts in the header's metadata.

Nothing is unpickled, and a header is checked for size, duplicates and count before anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import TypeAdapter, ValidationError

from lasro.errors import WireError
from lasro.validation import one_line

MAX_TENSORS = 4096
MAX_HEADER_BYTES = 1 << 20
_STRINGS = TypeAdapter(list[str])


def pack_tensors(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """Serialise C-contiguous arrays as safetensors; `metadata` values must be strings."""
    return safetensors.numpy.save(
        {name: np.ascontiguousarray(array) for name, array in tensors.items()},
        dict(metadata) if metadata else None,
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise WireError("safetensors: duplicate keys in the header, expected each name once")
    return result


def tensor_header(body: bytes) -> dict[str, Any]:
    """The parsed safetensors header, checked for size, duplicate keys and count before anything is loaded."""
    if len(body) < 8:
        raise WireError(f"safetensors: got {len(body)} bytes, expected at least 8")
    length = int.from_bytes(body[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(body) - 8):
        raise WireError(
            f"safetensors: header of {length} bytes, expected at most {min(MAX_HEADER_BYTES, len(body) - 8)}"
        )
    try:
        header = json.loads(body[8 : 8 + length], object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        if isinstance(error, WireError):
            raise
        raise WireError("safetensors: the header is not JSON") from error
    if not isinstance(header, dict) or len(header) > MAX_TENSORS:
        raise WireError(f"safetensors: expected a header of at most {MAX_TENSORS} tensors")
    return header


def unpack_tensors(body: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and header metadata of a safetensors body. Only finite float16 and float32 and integers pass."""
    metadata = tensor_header(body).get("__metadata__") or {}
    try:
        tensors = safetensors.numpy.load(body)
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise WireError(one_line(f"safetensors: {error}")) from error
    for name, array in tensors.items():
        if array.dtype not in (np.float16, np.float32, np.int64, np.int32, np.uint8):
            got = f"{one_line(name)}: got dtype {array.dtype}"
            raise WireError(f"{got}, expected float16, float32, int32, int64 or uint8")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise WireError(f"{one_line(name)}: got NaN or infinity, expected finite numbers")
    return tensors, metadata


def pack_prompts(prompts: list[str]) -> str:
    """Prompts as one header metadata string."""
    return json.dumps(prompts, ensure_ascii=False)


def unpack_prompts(metadata: Mapping[str, str], count: int) -> list[str]:
    """The `prompts` of a safetensors header; exactly `count` of them."""
    try:
        prompts = _STRINGS.validate_json(metadata.get("prompts", ""), strict=True)
    except ValidationError as error:
        raise WireError("prompts: expected a JSON list of strings in the safetensors metadata") from error
    if len(prompts) != count:
        raise WireError(f"prompts: got {len(prompts)}, expected one per latent ({count})")
    return prompts
