"""A reward server that speaks pickle, as those of flow_grpo do: JPEGs by redness, or what a test sets."""

from __future__ import annotations

import io
import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image


@dataclass
class PickleService:
    url: str = ""
    status: int = 200
    reply: Any = None
    """Set by a test: bytes as they are, all else pickled; None: the scores."""
    silence_s: float = 0.0
    requests: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, body: bytes) -> bytes:
        request = pickle.loads(body)  # noqa: S301 - it is the server that the bridge stands in front of
        self.requests.append(request)
        time.sleep(self.silence_s)
        if self.reply is not None:
            return self.reply if isinstance(self.reply, bytes) else pickle.dumps(self.reply)
        images = [Image.open(io.BytesIO(image), formats=["jpeg"]).convert("RGB") for image in request["images"]]
        return pickle.dumps({"scores": np.array([round(image.tobytes()[0] / 255, 2) for image in images])})


@contextmanager
def pickle_service() -> Iterator[PickleService]:
    """The server in a thread, on a free loopback port."""
    service = PickleService()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer = service.answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(service.status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            with suppress(ConnectionError):  # a client that has given up
                self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        service.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield service
        server.shutdown()
        thread.join(10)
