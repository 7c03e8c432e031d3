"""The reward endpoint: `truth` in the native protocol, and on demand every kind of failure.

`POST /fault/KIND` arms one and answers once it struck: 200, or 408 where nobody called for a while.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque

from PIL import Image
from starlette.types import ASGIApp, Receive, Scope, Send

from lasro.reward_function import RejectedItem
from lasro.reward_sdk import RewardEnvironment, create_reward_app, reward
from lasro.service.serve import run_service
from tests.chaos.workload import truth

SLOW_S = 3.0
"""Above the reward's timeout."""
STRIKES_WITHIN_S = 3.0
REPLIES = {
    "error": (503, b'{"error": "out of memory"}'),
    "nan": (200, b'{"scores": [NaN]}'),
    "zeros": (200, json.dumps({"scores": [0] * 1000}).encode()),
    "html": (200, b"<html>Login</html>"),
}
KINDS = (*REPLIES, "slow")


@reward
def score(images: list[Image.Image], prompts: list[str], metadata: object) -> list[float | RejectedItem]:
    found = [truth(image.tobytes()) for image in images]
    return [RejectedItem("no face found") if value is None else value for value in found]


class Failing:
    """Around the endpoint."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._armed: deque[tuple[str, asyncio.Event]] = deque()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path.startswith("/fault/"):
            await _answer(send, 200 if await self._strike(path.rpartition("/")[2]) else 408, b"{}")
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
        while (await receive()).get("more_body", False):
            pass
        await _answer(send, *REPLIES[kind])


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
