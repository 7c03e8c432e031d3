"""What the reward API is compared with, and the rewards that it calls: one ASGI app per process.

    LASRO_LISTEN_FD=N python -m benchmarks.rewards.apps NAME

`bare` and `fastapi` only read what they are sent. `scorer` answers POST /COUNT/DELAY_MS in the native protocol, as soon
as the delay has passed, without a look at the images.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from lasro.service.child_process import die_with_parent


async def _read(receive: Receive) -> int:
    size_bytes, more = 0, True
    while more:
        message = await receive()
        size_bytes += len(message.get("body", b""))
        more = message.get("more_body", False)
    return size_bytes


async def _answer(send: Send, body: bytes, content_type: bytes) -> None:
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    size_bytes = await _read(receive)
    await _answer(send, str(size_bytes).encode(), b"text/plain")


async def scorer(scope: Scope, receive: Receive, send: Send) -> None:
    _, count, delay_ms = scope["path"].split("/")
    await _read(receive)
    if delay_ms != "0":
        await asyncio.sleep(int(delay_ms) / 1000)
    await _answer(send, b'{"scores": [' + b", ".join([b"0.5"] * int(count)) + b"]}", b"application/json")


def reading_fastapi() -> FastAPI:
    app = FastAPI()

    @app.post("/")
    async def read(request: Request) -> Response:
        return Response(str(len(await request.body())))

    return app


def main() -> None:
    die_with_parent()
    apps: dict[str, ASGIApp] = {"bare": bare, "fastapi": reading_fastapi(), "scorer": scorer}
    listener = socket.socket(fileno=int(os.environ["LASRO_LISTEN_FD"]))
    config = uvicorn.Config(
        apps[sys.argv[1]],
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        # Connections rest while others have their turns: one that is closed as its turn comes fails a bare client.
        timeout_keep_alive=60,
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
