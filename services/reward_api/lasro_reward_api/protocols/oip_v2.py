"""The Open Inference Protocol, version 2, of KServe, Triton and others: POST /v2/models/{model}/infer, tensors in JSON.

Written from specification/protocol/inference_rest.md of kserve/open-inference-protocol at commit
d49cc23f89d709d87b210ef9449e273ae243984e, held against python/kserve/kserve/protocol/rest/v2_datamodels.py of
kserve/kserve at aaac4e294dae2c7b1aa1886447793f3aa1c30912 and src/http_server.cc of triton-inference-server/server at
e1db8a603d863b1317ee859bdeea2be19959462e. In JSON an element of a BYTES tensor is a string, so images go as base64 text,
which the model has to decode, and metadata as JSON text. Triton writes no FP16 and no BF16 into JSON.

    mapping = {"model": "aesthetic", "inputs": [{"name": "IMAGE", "holds": "images"}],
               "output": "SCORE", "column": true}

Tensors have shape [images], or [images, 1] with `column`, which a Triton model with max_batch_size above 0 and
dims [1] wants. The output may have either shape.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lasro.errors import WireError
from lasro_reward_api.protocols.base import Batch, HttpRequest, ItemResult, ProtocolCodec, Settings
from lasro_reward_api.protocols.bodies import base64_text, json_parts
from lasro_reward_api.protocols.options import Options, Text, parsed
from lasro_reward_api.protocols.replies import finite_number, json_object, keys_shown, refuse_error

PathPart = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")]
NUMBERS = ("FP16", "FP32", "FP64", *(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)))


class InputTensor(Options):
    name: Text
    holds: Literal["prompts", "images", "metadata"]
    parameters: dict[str, str | bool | int | Annotated[float, Field(allow_inf_nan=False)]] | None = None
    """Sent along as they are, such as {"content_type": "base64"} for MLServer."""


DEFAULT_INPUTS = (InputTensor(name="prompt", holds="prompts"), InputTensor(name="image", holds="images"))


class InferOptions(Options):
    model: PathPart
    version: PathPart | None = None
    inputs: tuple[InputTensor, ...] = Field(default=DEFAULT_INPUTS, max_length=16, strict=False)
    output: Text = "score"
    column: bool = False

    @model_validator(mode="after")
    def _images_and_names(self) -> InferOptions:
        names = [tensor.name for tensor in self.inputs]
        if len(set(names)) != len(names):
            raise ValueError(f"inputs: got the names {names}, expected each once")
        if all(tensor.holds != "images" for tensor in self.inputs):
            raise ValueError("inputs: got none that holds images, expected one")
        return self


def check(settings: Settings) -> None:
    parsed(InferOptions, settings)


def encode(batch: Batch, settings: Settings) -> HttpRequest:
    options = parsed(InferOptions, settings)
    columns = {
        "prompts": batch.prompts,
        "images": [base64_text(image) for image in batch.images],
        "metadata": [json.dumps(metadata) for metadata in batch.metadata],
    }
    shape = [len(batch.images), 1] if options.column else [len(batch.images)]
    inputs = [
        {"name": tensor.name, "shape": shape, "datatype": "BYTES", "data": columns[tensor.holds]}
        | ({"parameters": tensor.parameters} if tensor.parameters else {})
        for tensor in options.inputs
    ]
    version = f"/versions/{options.version}" if options.version else ""
    request = {"inputs": inputs, "outputs": [{"name": options.output}]}
    return json_parts(request, f"/v2/models/{options.model}{version}/infer")


def decode(content_type: str, body: bytes, count: int, settings: Settings) -> list[ItemResult]:
    name = parsed(InferOptions, settings).output
    data = _numbers(_named(json_object(content_type, body), name), name, count)
    return [finite_number(value, f"{name}[{index}]") for index, value in enumerate(data)]


def _named(reply: dict[str, Any], name: str) -> dict[str, Any]:
    refuse_error(reply, "outputs")
    outputs = reply.get("outputs")
    if not isinstance(outputs, list):
        raise WireError(f"reply: no list 'outputs', got the keys {keys_shown(reply)}")
    found = [tensor for tensor in outputs if isinstance(tensor, dict) and tensor.get("name") == name]
    if len(found) != 1:
        names = [str(tensor.get("name"))[:40] for tensor in outputs if isinstance(tensor, dict)]
        raise WireError(f"outputs: got the names {names[:5]}, expected {name!r} once")
    return found[0]


def _numbers(tensor: dict[str, Any], name: str, count: int) -> list[Any]:
    """The tensor's elements, flat, after its datatype, shape and count have been held against `count`."""
    shape, datatype, data = tensor.get("shape"), tensor.get("datatype"), tensor.get("data")
    if datatype not in NUMBERS:
        raise WireError(f"{name}: got datatype {str(datatype)[:40]}, expected a number ({', '.join(NUMBERS[:3])}, ...)")
    if shape not in ([count], [count, 1]):
        raise WireError(f"{name}: got shape {str(shape)[:40]}, expected [{count}] or [{count}, 1], one score per image")
    if not isinstance(data, list):
        raise WireError(f"{name}: got no list as data, expected numbers in JSON (not Triton's binary extension)")
    if shape == [count, 1] and all(isinstance(row, list) and len(row) == 1 for row in data):
        data = [row[0] for row in data]
    if len(data) != count:
        raise WireError(f"{name}: got {len(data)} elements, expected one per image ({count})")
    return data


CODEC = ProtocolCodec(check, encode, decode)
