"""The reward endpoints: `truth` in the native protocol, at / and at /mortal, and on demand every kind of failure.

`POST /fault/KIND` arms one at / and answers once it struck: 200, or 408 where nobody called for a while. After
`/fault/cold?SECONDS` both endpoints answer 503 for so long; after `/fault/dies` /mortal does for good.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import deque
from pathlib import Path

from PIL import Image
from starlette.types import ASGIApp, Receive, Scope, Send

from lasro.reward_function import RejectedItem
from lasro.reward_sdk import RewardEnvironment, create_reward_app, reward
from lasro.service.serve import run_service
from tests.chaos.workload import MORTAL, truth

SLOW_S = 3.0
"""Above the reward's timeout."""
STRIKES_WITHIN_S = 3.0
REPLIES = {
    "error": (503, b'{"error": "out of memory"}'),
    "nan": (200, b'{"scores": [NaN]}'),
    "zeros": (200, json.dumps({"scores": [0] * 1000}).encode()),
    "html": (200, b"<html>Login</html>"),
}
COLD = (503, b'{"error": "loading the model"}')
DEAD = (503, b'{"error": "CUDA error: device-side assert triggered"}')
KINDS = (*REPLIES, "slow", "cold", "dies")


@reward
def score(images: list[Image.Image], prompts: list[str], metadata: object) -> list[float | RejectedItem]:
    found = [truth(image.tobytes()) for image in images]
    return [RejectedItem("no face found") if value is None else value for value in found]


class Failing:
    """Around the endpoint. That /mortal is dead is kept in a file: no restart brings it back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._armed: deque[tuple[str, asyncio.Event]] = deque()
        self._warm_at_s = 0.0
        self._dead = Path(os.environ["CHAOS_FOLDER"]) / "mortal.dead"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path == "/fault/cold":
            self._warm_at_s = time.monotonic() + float(scope["query_string"])
            await _answer(send, 200, b"{}")
        elif path == "/fault/dies":
            self._dead.touch()
            await _answer(send, 200, b"{}")
        elif path.startswith("/fault/"):
            await _answer(send, 200 if await self._strike(path.rpartition("/")[2]) else 408, b"{}")
        elif path in ("/", f"/{MORTAL}") and time.monotonic() < self._warm_at_s:
            await _refuse(receive, send, COLD)
        elif path == f"/{MORTAL}" and self._dead.exists():
            await _refuse(receive, send, DEAD)
        elif path == f"/{MORTAL}":
            await self._app({**scope, "path": "/", "raw_path": b"/"}, receive, send)
        elif path == "/" and self._armed:
            kind, struck = self._armed.popleft()
            struck.set()
            await self._fail(kind, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _strike(self, kind: str) -> bool:
        armed = kind, asyncio.Event()
        self._armed.append(armed)
        try:
            async with asyncio.timeout(STRIKES_WITHIN_S):
                await armed[1].wait()
        except TimeoutError:
            if armed in self._armed:
                self._armed.remove(armed)
        return armed[1].is_set()

    async def _fail(self, kind: str, scope: Scope, receive: Receive, send: Send) -> None:
        if kind == "slow":
            await asyncio.sleep(SLOW_S)
            await self._app(scope, receive, send)
            return
        await _refuse(receive, send, REPLIES[kind])


async def _refuse(receive: Receive, send: Send, reply: tuple[int, bytes]) -> None:
    while (await receive()).get("more_body", False):
        pass
    await _answer(send, *reply)


async def _answer(send: Send, status: int, body: bytes) -> None:
    kind = b"text/html" if body.startswith(b"<") else b"application/json"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    settings = RewardEnvironment.model_validate({})
    app = create_reward_app(score, settings)
    app.add_middleware(Failing)
    run_service(app, settings)


if __name__ == "__main__":
    main()
