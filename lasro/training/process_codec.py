"""What one process of a run sends to another, as bytes: checked by its declared type, never unpickled.

A value is msgpack, a tensor safetensors inside it, and a LasroError the name of its class and its message. The type is
declared at each call as pydantic understands it: `int | None`, `GroupStatus`, `dict[str, CpuTensor]`. torch is imported
only where a tensor crosses.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any

import msgpack
from pydantic import PlainSerializer, PlainValidator, TypeAdapter, ValidationError

from lasro import errors
from lasro.errors import LasroError, ServiceError, WireError
from lasro.validation import explain

TENSOR = "tensor"


def _tensor_to_bytes(tensor: Any) -> bytes:
    import safetensors.torch

    return safetensors.torch.save({TENSOR: tensor.detach().contiguous()})


def _tensor_from_bytes(body: Any) -> Any:
    import safetensors.torch

    if not isinstance(body, bytes):
        raise ValueError(f"got {type(body).__name__}, expected a tensor as safetensors")
    return safetensors.torch.load(body)[TENSOR]


CpuTensor = Annotated[Any, PlainValidator(_tensor_from_bytes), PlainSerializer(_tensor_to_bytes)]
"""A torch tensor on the CPU, of any shape and dtype."""


def encode(value: object, kind: Any) -> bytes:
    """A value of type `kind`. Raises WireError where it is something that msgpack cannot carry."""
    try:
        return _pack({"value": _adapter(kind).dump_python(value)})
    except (OverflowError, ValueError, TypeError) as error:
        raise WireError(f"processes: {type(value).__name__} cannot be sent as {kind} ({error})") from error


def encode_error(error: LasroError) -> bytes:
    """An error, as the nearest class of `lasro.errors`."""
    kind = next(each for each in type(error).__mro__ if each.__module__ == errors.__name__)
    fields = [error.status, error.problem_title, error.detail] if isinstance(error, ServiceError) else [str(error)]
    return _pack({"error": kind.__name__, "fields": fields})


def decode(body: bytes, kind: Any) -> Any:
    """What `encode` was given; raises the LasroError that `encode_error` was given, and WireError for anything else."""
    try:
        message = msgpack.unpackb(body, raw=False, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise WireError(f"processes: got {len(body)} bytes that are not msgpack ({error})") from error
    if not isinstance(message, dict) or not message.keys() & {"value", "error"}:
        raise WireError(
            "processes: got a message without value or error; start all processes with one version of lasro"
        )
    if "error" in message:
        raise _error(message)
    try:
        return _adapter(kind).validate_python(message["value"])
    except ValidationError as error:
        raise WireError(f"processes: {explain(error)}; start all processes with one version of lasro") from error


def _error(message: dict[str, Any]) -> LasroError:
    kind = getattr(errors, str(message["error"]), None)
    if not (isinstance(kind, type) and issubclass(kind, LasroError)):
        return LasroError(" ".join(map(str, message["fields"])))
    return kind(*message["fields"])


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _pack(message: dict[str, Any]) -> bytes:
    packed = msgpack.packb(message, use_bin_type=True)
    assert packed is not None
    return packed
