"""A reward endpoint with every fault there is, by path, and what each must come to."""

from __future__ import annotations

import asyncio
import gzip
import io
import struct
import zlib
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from PIL import Image

from lasro.wire import Status


@dataclass(frozen=True)
class Fault:
    """Of three images scored by the endpoint at `path`, or at a URL of its own. `error` is a part of what is told."""

    what: str
    path: str
    status: Status
    error: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the reward's registration."""


def bad_reply(what: str, name: str, error: str) -> Fault:
    return Fault(what, f"/json/{name}", Status.BAD_REPLY, error)


QUICK = {"timeout_s": 0.3}
JSON_REPLIES = {
    "too-few": '{"scores": [0.1, 0.2]}',
    "too-many": '{"scores": [0.1, 0.2, 0.3, 0.4]}',
    "one-for-all": '{"scores": 0.5}',
    "nan": '{"scores": [0.1, NaN, 0.3]}',
    "infinity": '{"scores": [0.1, 1e999, 0.3]}',
    "strings": '{"scores": ["0.1", "0.2", "0.3"]}',
    "booleans": '{"scores": [true, false, true]}',
    "nulls": '{"scores": [0.1, null, 0.3]}',
    "nested": '{"scores": [[0.1], [0.2], [0.3]]}',
    "huge-integer": '{"scores": [1' + "0" * 400 + ", 1, 1]}",
    "null-without-reason": '{"scores": [0.1, null, 0.3], "errors": [null, null, null]}',
    "score-beside-error": '{"scores": [0.1, 0.2, 0.3], "errors": [null, "no face", null]}',
    "too-few-errors": '{"scores": [0.1, 0.2, 0.3], "errors": [null]}',
    "error-body": '{"error": "out of memory"}',
    "array": "[0.1, 0.2, 0.3]",
    "empty": "",
    "deep": "[" * 100_000,
}
REFUSALS: dict[str, tuple[int, str, str]] = {
    "json": (404, "application/json", '{"error": {"message": "model \'x\' is not loaded", "code": null}}'),
    "list": (400, "application/json", '{"detail": [{"loc": ["body", "images"], "msg": "Field required"}]}'),
    "traceback": (500, "text/html", 'Traceback (most recent call last):\n  File "app.py"\nRuntimeError: no GPU\n'),
    "html": (502, "text/html", "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"),
    "quote": (403, "text/plain", "unknown key 0123-key\nsee the manual"),
}
REPLIES = [
    bad_reply("fewer scores than images", "too-few", "got 2, expected one per image (3)"),
    bad_reply("more scores than images", "too-many", "got 4, expected one per image (3)"),
    bad_reply("one score for all images", "one-for-all", "no list 'scores'"),
    bad_reply("NaN among the scores", "nan", "scores[1]: got nan, expected a finite number"),
    bad_reply("infinity among the scores", "infinity", "scores[1]: got inf, expected a finite number"),
    bad_reply("scores as strings", "strings", "scores[0]: got str, expected a number"),
    bad_reply("scores as booleans", "booleans", "scores[0]: got bool, expected a number"),
    bad_reply("null for a score", "nulls", "scores[1]: got NoneType, expected a number"),
    bad_reply("lists for scores", "nested", "scores[0]: got list, expected a number"),
    bad_reply("an integer beyond any float", "huge-integer", "scores[0]: got an integer too large"),
    bad_reply("null for a score, without a reason", "null-without-reason", "scores[1]: got NoneType"),
    bad_reply("a score beside an error", "score-beside-error", "scores[1]: got a value"),
    bad_reply("fewer errors than images", "too-few-errors", "errors: got 1"),
    bad_reply("status 200 with an error in the body", "error-body", "no list 'scores', got the keys ['error']"),
    bad_reply("a list instead of an object", "array", "got a JSON list, expected an object"),
    bad_reply("nothing", "empty", "got 0 bytes of application/json that are not JSON"),
    bad_reply("100,000 brackets", "deep", "that are not JSON"),
    Fault("HTML, such as a login page", "/html", Status.BAD_REPLY, "text/html that are not JSON"),
    Fault("an image, by content type and content", "/image", Status.BAD_REPLY, "image/png that are not JSON"),
    Fault("msgpack that is called JSON", "/mislabelled", Status.BAD_REPLY, "application/json that are not JSON"),
    Fault("scores outside the registered range", "/ok", Status.BAD_REPLY, "expected a score in", {"range": (0, 1)}),
    Fault("1 GB, without end in sight", "/endless", Status.BAD_REPLY, "more than 1048576 bytes"),
    Fault("a gzip bomb: 64 MB in 64 kB", "/gzip-bomb", Status.BAD_REPLY, "compressed"),
    Fault("the scorer's own reason for one image", "/some-rejected", Status.REJECTED, "no face found"),
    Fault("HTTP 404", "/status/404", Status.HTTP_ERROR, "HTTP 404 Not Found"),
    *(
        Fault(what, f"/refused/{name}", Status.HTTP_ERROR, error, {"headers": {"X-Key": "0123-key"}})
        for what, name, error in (
            ("HTTP 404 with a reason in JSON", "json", "HTTP 404 Not Found: model 'x' is not loaded"),
            ("HTTP 400 with a list of what does not fit", "list", "HTTP 400 Bad Request: body.images: Field required"),
            ("HTTP 500 with a Python traceback", "traceback", "HTTP 500 Internal Server Error: RuntimeError: no GPU"),
            ("HTTP 502 with a page of a proxy", "html", "HTTP 502 Bad Gateway"),
            ("HTTP 403 that quotes the reward's key", "quote", "HTTP 403 Forbidden: unknown key [redacted]"),
            ("HTTP 400 with a reason without end", "endless", "HTTP 400 Bad Request: no no no"),
        )
    ),
    Fault(
        "HTTP 503 with a reason that comes slowly",
        "/refused/slow",
        Status.HTTP_ERROR,
        "HTTP 503 Service Unavailable: loading",
        QUICK,
    ),
    Fault("HTTP 500, three times", "/status/500", Status.HTTP_ERROR, "HTTP 500"),
    Fault("HTTP 429 that asks to wait a day", "/asks-to-wait-too-long", Status.HTTP_ERROR, "HTTP 429"),
    Fault("a redirect to a private address", "/redirect", Status.HTTP_ERROR, "HTTP 307: redirects are not followed"),
    Fault("silence", "/slow", Status.TIMEOUT, "no reply within 0.3 s", QUICK),
    Fault("one byte now and then", "/trickle", Status.TIMEOUT, "no reply within 0.3 s", QUICK),
]
PLACES = [
    Fault("nobody listens there", "http://127.0.0.1:1/", Status.UNREACHABLE, "ConnectError"),
    Fault("a name that does not exist", "https://no-such-host.invalid/", Status.UNREACHABLE, "cannot be resolved"),
    *(
        Fault(what, url, Status.BLOCKED, error)
        for what, url, error in (
            ("plain http to a private address", "http://10.1.2.3/", "plain http may not go"),
            ("plain http to the metadata service", "http://169.254.169.254/latest/meta-data", "plain http may not go"),
            ("plain http to a public address", "http://93.184.216.34/", "plain http may not go"),
            ("https to a private address", "https://10.0.0.1/", "https may not go"),
            ("a private address, mapped to IPv6", "https://[::ffff:10.0.0.1]/", "https may not go"),
            ("a private address behind NAT64", "https://[64:ff9b::a00:1]/", "https may not go"),
            ("carrier-grade NAT", "https://100.64.0.1/", "https may not go"),
            ("this host, as 0.0.0.0", "https://0.0.0.0/", "https may not go"),
            ("a private address as one number", "https://167772161/", "https may not go"),
        )
    ),
]


def endpoints(private_url: str) -> FastAPI:
    """The scorer; `private_url` is where its redirect leads. `app.state.calls` counts some of its calls."""
    app = FastAPI()
    app.state.calls = 0
    _add_answers(app, private_url)
    _add_refusals(app)
    _add_streams(app)
    return app


def _add_answers(app: FastAPI, private_url: str) -> None:
    @app.post("/json/{name}")
    async def json_reply(name: str) -> Response:
        return Response(JSON_REPLIES[name], media_type="application/json")

    @app.post("/html")
    async def html() -> Response:
        return Response("<html>Login</html>", media_type="text/html")

    @app.post("/image")
    async def image() -> Response:
        return Response(b"\x89PNG\r\n\x1a\n", media_type="image/png")

    @app.post("/mislabelled")
    async def mislabelled() -> Response:
        return Response(b"\x81\xa6scores\x93\x01\x02\x03", media_type="application/json")

    @app.post("/redirect")
    async def redirect() -> Response:
        return Response(status_code=307, headers={"Location": private_url})

    @app.post("/ok")
    async def ok(request: Request) -> Response:
        app.state.calls += 1
        assert len((await request.json())["images"]) == 3
        return Response('{"scores": [1, 2.5, -3]}', media_type="application/json")

    @app.post("/status/{status}")
    async def with_status(status: int) -> Response:
        app.state.calls += 1
        return Response("no", status_code=status, headers={"Retry-After": "0"})

    @app.post("/recovers")
    async def recovers(request: Request) -> Response:
        if app.state.calls == 2:
            return await ok(request)
        return await with_status(503)

    @app.post("/asks-to-wait-too-long")
    async def too_long() -> Response:
        app.state.calls += 1
        return Response(status_code=429, headers={"Retry-After": "86400"})

    @app.post("/some-rejected")
    async def some_rejected() -> Response:
        return Response('{"scores": [0.1, null, 0.3], "errors": [null, "no face found", null]}')


def _add_refusals(app: FastAPI) -> None:
    async def slowly():
        yield b"loading"
        await asyncio.sleep(5)

    async def without_end():
        for _ in range(16_384):
            yield b"no " * 16_384

    @app.post("/refused/slow")
    async def slow_reason() -> Response:
        return StreamingResponse(slowly(), 503, {"Retry-After": "86400"}, "text/plain")

    @app.post("/refused/endless")
    async def endless_reason() -> Response:
        return StreamingResponse(without_end(), 400, media_type="text/plain")

    @app.post("/refused/{name}")
    async def refused(name: str) -> Response:
        status, kind, body = REFUSALS[name]
        return Response(body, status, {"Retry-After": "0"}, kind)


def _add_streams(app: FastAPI) -> None:
    @app.post("/slow")
    async def slow() -> Response:
        app.state.calls += 1
        await asyncio.sleep(5)
        return Response('{"scores": [1, 2, 3]}')

    @app.post("/trickle")
    async def trickle() -> Response:
        async def drops():
            for _ in range(100):
                yield b" "
                await asyncio.sleep(0.05)

        return StreamingResponse(drops(), media_type="application/json")

    @app.post("/endless")
    async def endless() -> Response:
        async def flood():
            for _ in range(16_384):
                yield b" " * 65_536

        return StreamingResponse(flood(), media_type="application/json")

    @app.post("/gzip-bomb")
    async def bomb() -> Response:
        body = gzip.compress(b" " * (64 << 20))
        return Response(body, media_type="application/json", headers={"Content-Encoding": "gzip"})


def png(shade: int) -> bytes:
    """A small image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@cache
def pixel_bomb(side: int = 13_300) -> bytes:
    """A black PNG of side x side pixels: 515 kB that want half a gigabyte, made without having it.

    After a full flush nothing refers to what was before, so a tenth that is packed once stands ten times.
    """
    tenth = bytes((1 + 3 * side) * side // 10)
    packer, checksum = zlib.compressobj(9, wbits=-zlib.MAX_WBITS), 1
    packed = packer.compress(tenth) + packer.flush(zlib.Z_FULL_FLUSH)
    for _ in range(10):
        checksum = zlib.adler32(tenth, checksum)
    data = b"\x78\xda" + packed * 10 + b"\x03\x00" + struct.pack(">I", checksum)
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
