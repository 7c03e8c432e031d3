"""A native reward that takes 20 ms per call, as bare ASGI: `uvicorn slow_endpoint:app`."""

from __future__ import annotations

import asyncio
import json
from typing import Any

CALL_S = 0.02


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    body, is_whole = b"", False
    while not is_whole:
        message = await receive()
        body += message.get("body", b"")
        is_whole = not message.get("more_body")
    images = json.loads(body)["images"] if body else []
    await asyncio.sleep(CALL_S)
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"scores": [0.5] * len(images)}).encode()})
