"""Small servers written from the public files of other projects that the protocol modules name.

All score an image's redness, 0 to 255, as a fraction; the prompt may ask for a failure of that one item, `fault` for
one of the whole reply.
"""

from __future__ import annotations

import asyncio
import base64
import io
import math
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request, Response
from PIL import Image
from pydantic import BaseModel, Field

SHADES = [51, 204, 0, 255, 102]
SCORES = [0.2, 0.8, 0.0, 1.0, 0.4]


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def redness(text: str) -> float:
    pixel: Any = Image.open(io.BytesIO(base64.b64decode(text, validate=True))).getpixel((0, 0))
    return pixel[0] / 255


class Turn(BaseModel):
    text: str
    image_b64: str


class UniRLRequest(BaseModel):
    history: Annotated[list[Turn], Field(min_length=1)]
    required_rewards: list[str]
    metadata: dict[str, Any] | None = None


class UniRLBody(BaseModel):
    requests: list[UniRLRequest]


class UniRLReply(BaseModel):
    results: list[dict[str, dict[str, float]]]
    errors: list[dict[str, str]] = []


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[Any]


class InferBody(BaseModel):
    inputs: list[Tensor]
    outputs: list[dict[str, str]] | None = None


class Servers:
    """All of them behind one URL."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.fault: str | None = None
        self.refusals = self.refused = 0
        self.calls: list[int] = []
        self.at_once = self.most_at_once = 0
        self.most_logprobs, self.refused_logprobs = 20, 0
        self.app.middleware("http")(self._or_fault)
        self.app.post("/")(self.native)
        self.app.post("/compute")(self.flow_factory)
        self.app.post("/score", response_model=UniRLReply)(self.unirl)
        self.app.post("/v1/chat/completions")(self.chat)
        self.app.post("/v2/models/red/infer")(self.infer)
        self.app.post("/rank")(self.rank)

    async def _or_fault(self, request: Request, call_next: Callable[[Request], Any]) -> Response:
        if self.fault is not None:
            return Response(self.fault, media_type="application/json")
        if self.refused < self.refusals:
            self.refused += 1
            return Response(status_code=503, headers={"Retry-After": "0"})
        return await call_next(request)

    async def native(self, body: dict[str, list[Any]]) -> dict[str, list[float]]:
        assert len(body["prompts"]) == len(body["images"]) == len(body["metadata"])
        self.calls.append(len(body["images"]))
        return {"scores": [redness(text) for text in body["images"]]}

    async def flow_factory(self, body: dict[str, list[str]]) -> dict[str, list[float]]:
        assert len(body["prompt"]) == len(body["image"])
        self.calls.append(len(body["image"]))
        return {"rewards": [redness(text) for text in body["image"]]}

    async def unirl(self, body: UniRLBody) -> UniRLReply:
        self.calls.append(len(body.requests))
        results: list[dict[str, dict[str, float]]] = []
        errors: list[dict[str, str]] = []
        for request in body.requests:
            assert request.required_rewards == ["red"]
            failed = request.history[-1].text == "fail"
            score = math.nan if request.history[-1].text == "nan" else redness(request.history[-1].image_b64)
            results.append({} if failed else {"red": {"red": score}})
            errors.append({"red": "RuntimeError('CUDA out of memory')"} if failed else {})
        return UniRLReply(results=results, errors=errors)

    async def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        assert body["model"] == "red-vl"
        assert not body["stream"]
        image, text = body["messages"][0]["content"]
        kind, _, data = image["image_url"]["url"].partition(";base64,")
        assert kind == "data:image/png"
        self.calls.append(1)
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        await asyncio.sleep(0.02)
        self.at_once -= 1
        if "too large" in text["text"]:
            raise HTTPException(400, "the image is too large for the context")
        if (asked := body.get("top_logprobs", 0)) > self.most_logprobs:
            self.refused_logprobs += 1
            allowed = f"which is greater than max allowed: {self.most_logprobs}"
            raise HTTPException(400, f"Requested sample logprobs of {asked}, {allowed}")
        said = "I am sorry, but I cannot rate this." if "fail" in text["text"] else f"{10 * redness(data):g}"
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": said},
            "finish_reason": "stop",
        }
        if body.get("logprobs"):
            probabilities = {"Yes": 0.9 * redness(data), "No": 0.9 - 0.9 * redness(data), "Well": 0.1}
            top = [{"token": token, "logprob": math.log(p) if p else -9999.0} for token, p in probabilities.items()]
            choice |= {"logprobs": {"content": [top[0] | {"top_logprobs": top}]}, "finish_reason": "length"}
        return {"id": "chatcmpl-1", "object": "chat.completion", "model": body["model"], "choices": [choice]}

    async def infer(self, body: InferBody) -> dict[str, Any]:
        tensors = {tensor.name: tensor for tensor in body.inputs}
        image = tensors["IMAGE"]
        assert image.datatype == tensors["PROMPT"].datatype == "BYTES"
        assert image.shape == [len(image.data), 1] == tensors["PROMPT"].shape
        self.calls.append(len(image.data))
        scores = [redness(text) for text in image.data]
        output = {"name": "SCORE", "datatype": "FP32", "shape": [len(scores), 1], "data": scores}
        return {"model_name": "red", "model_version": "1", "outputs": [output]}

    async def rank(self, request: Request) -> dict[str, Any]:
        items = (await request.json())["items"]
        self.calls.append(len(items))
        return {
            "items": [
                {"why": "no face"} if item["caption"] == "fail" else {"value": redness(item["picture"].split(",")[1])}
                for item in items
            ]
        }
