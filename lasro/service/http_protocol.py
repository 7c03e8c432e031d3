"""uvicorn's HTTP protocol with bounds on what a connection costs before a request is there to be judged.

A head has a size and a deadline, and what nobody reads or sends does not stay for ever. So many connections are open at
once; when another comes, the one that has waited longest for its request goes, be it idle or half way through a head.
"""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from lasro.service.http_limits import OpenConnections
from lasro.service.problem import HEAD_TOO_LARGE, HEAD_TOO_SLOW, MALFORMED_HTTP, answer_busy, problem_response

LINGER_S = 2.0
"""How long a refused connection is read and forgotten: closed at once, its answer would be lost with what it sends."""
PIECE_BYTES = 64 << 10
"""What the parser is given at once, so that of a head without end little is parsed before it is refused."""
MAX_PIPELINED = 16
"""Requests sent on before the first of them is answered. One piece could hold a thousand, and each costs a task."""


class LimitedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, shared: OpenConnections, **options: Any) -> None:
        super().__init__(*args, **options)
        self._shared, self._limits = shared, shared.limits
        self._unused_bytes = 0
        """Received since a head was complete or a part of a body came: heads, trailers, chunk extensions."""
        self._fed_bytes = 0
        """Size of what the parser reads now."""
        self._is_read, self._is_refused = True, False
        """Whether the newest request has come whole; whether the rest of the connection is ignored."""
        self._running: RequestResponseCycle | None = None
        """The request that is being answered; `cycle` is the newest that came."""
        self._deadline: asyncio.TimerHandle | None = None
        self._unsent_check: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._shared.waiting[self] = None
        self._set_deadline(self._limits.head_timeout_s)
        connected = transport.get_extra_info("socket")
        if len(self.connections) > self._limits.connections or connected.fileno() > self._limits.descriptors:
            self._make_room(connected.fileno())

    def _make_room(self, descriptor: int) -> None:
        if descriptor > self._limits.descriptors:
            self._shared.warn("too many open files: raise `ulimit -n`, or lower LASRO_MAX_CONNECTIONS")
        else:
            self._shared.warn(f"more than {self._limits.connections} connections: LASRO_MAX_CONNECTIONS is the limit")
        oldest = next(iter(self._shared.waiting))
        if oldest is self:
            self.app = answer_busy
        else:
            oldest.drop()

    def drop(self) -> None:
        """Close a connection that waits for a request, whatever it has not read yet."""
        self._shared.waiting.pop(self, None)
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.waiting.pop(self, None)
        self._set_deadline(None)
        if self._unsent_check is not None:
            self._unsent_check.cancel()
        self.pipeline.clear()  # nobody reads those answers
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if len(data) <= PIECE_BYTES:
            self._feed(data)
            return
        pieces: Any = memoryview(data)  # the parser takes it, and nothing of a large body is copied
        for start in range(0, len(data), PIECE_BYTES):
            if not self._is_refused and not self.transport.is_closing():
                self._feed(pieces[start : start + PIECE_BYTES])

    def _feed(self, data: bytes) -> None:
        self._fed_bytes = len(data)
        self._unused_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if not self._is_refused:
                self._ignore_upgrade(bytes(data[upgrade.args[0] :]))
            return
        except httptools.HttpParserError:
            self._shared.warn("closed for bytes that are no HTTP request")
            self.send_400_response("Invalid HTTP request received.")
            return
        if self.transport.is_closing() or self._is_refused:
            return
        if self._unused_bytes > self._limits.head_bytes:
            self._refuse_large()
        elif self._deadline is None and self._awaits_head():
            self._set_deadline(self._limits.head_timeout_s)

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Have a head that offers HTTP/2, as all of Java's do, read again without: the parser would skip its body."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":  # which is nothing but such an offer
            self.send_400_response("CONNECT is for proxies")
            return
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        lines += [b"%s: %s" % (name, value) for name, value in self.headers if name != b"upgrade"]
        self.parser, self._unused_bytes = httptools.HttpRequestParser(self), 0
        self._feed(b"\r\n".join((*lines, b"", rest)))

    def _awaits_head(self) -> bool:
        return self._is_read and (self.cycle is None or self.cycle.response_complete)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():  # read again by `_ignore_upgrade`
            return
        if max(self._unused_bytes, self._fed_bytes) > self._limits.head_bytes:  # maybe with a body, or the end of one
            head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if head_bytes > self._limits.head_bytes:
                self._refuse_large()
        if self._is_refused:
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            self._shared.warn(f"closed with more than {MAX_PIPELINED} requests sent before the first was answered")
            self._cut()
            return
        self._set_deadline(None)
        self._shared.waiting.pop(self, None)
        self._unused_bytes, self._is_read = 0, False
        if not self.url.startswith(b"/"):
            self._add_host_of_target()
        super().on_headers_complete()

    def _add_host_of_target(self) -> None:
        """The host of a whole URL in the request line; where the header Host has another one, the gate refuses two."""
        host = urlsplit(self.url).netloc
        if host and (b"host", host) not in self.headers:
            self.headers.append((b"host", host))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_body(self, body: bytes) -> None:
        self._unused_bytes = 0
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_refused or self.parser.should_upgrade():
            return
        self._unused_bytes, self._is_read = 0, True
        if self.cycle.response_complete:  # what was left of a body that the answer did not wait for
            self._set_deadline(None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._check_unsent()
        elif not self.pipeline:
            self._shared.waiting[self] = None
            if not self._is_read:
                self._set_deadline(self._limits.body_timeout_s)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._check_unsent()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unsent_check is None:
            self._check_unsent()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unsent_check is not None and not self.transport.is_closing():
            self._unsent_check.cancel()
            self._unsent_check = None

    def send_400_response(self, msg: str) -> None:
        self.transport.write(_raw(problem_response(MALFORMED_HTTP, msg, {"Connection": "close"})))
        self.transport.close()

    def _set_deadline(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._is_late)

    def _is_late(self) -> None:
        self._deadline = None
        if not self._is_read or not self._unused_bytes:  # it was answered before its body came, or never sent anything
            self.transport.close()
            return
        timeout_s = self._limits.head_timeout_s
        self._shared.warn(f"closed before their heads came, within {timeout_s:g} s: LASRO_HEAD_TIMEOUT_S is the limit")
        detail = f"the head did not come within {timeout_s:g} s; send it again"
        self._refuse(problem_response(HEAD_TOO_SLOW, detail, {"Connection": "close"}))

    def _refuse_large(self) -> None:
        self._shared.warn(f"heads over {self._limits.head_bytes} bytes: LASRO_MAX_HEAD_BYTES is the limit")
        if not self._awaits_head():  # trailers without end, or a head sent on before the last request is answered
            self._cut()
            return
        detail = f"expected a head of at most {self._limits.head_bytes} bytes"
        self._refuse(problem_response(HEAD_TOO_LARGE, detail, {"Connection": "close"}))

    def _cut(self) -> None:
        self._is_refused = True
        self.transport.abort()

    def _refuse(self, answer: Response) -> None:
        self._is_refused = True
        if self.headers:  # the parser's beginning of a head that nobody will read
            self.headers.clear()
        self.transport.write(_raw(answer))
        self.transport.write_eof()
        self._set_deadline(None)
        self._deadline = self.loop.call_later(LINGER_S, self.transport.abort)

    def _check_unsent(self, before_bytes: int | None = None) -> None:
        """Have the connection cut where its other end reads nothing of an answer for as long as a body may take."""
        left_bytes = self.transport.get_write_buffer_size()
        self._unsent_check = None
        if before_bytes is not None and left_bytes >= before_bytes:
            self.transport.abort()
        elif left_bytes:
            self._unsent_check = self.loop.call_later(self._limits.body_timeout_s, self._check_unsent, left_bytes)


def _raw(answer: Response) -> bytes:
    """An answer as it goes over the wire."""
    headers = b"".join(b"%s: %s\r\n" % header for header in answer.raw_headers)
    return STATUS_LINE[answer.status_code] + headers + b"\r\n" + bytes(answer.body)
