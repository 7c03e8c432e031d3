"""Paths as callers see them: the prefix that a proxy puts before them, and the methods that each takes."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class PathPrefix:
    """Serves an app below `prefix`, as ASGI's `root_path`.

    A proxy may leave the prefix in the path or take it off. Redirects name no host and no scheme: the proxy's are
    others than the service's.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app, self.prefix = app, prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path: str = scope["path"]
        if path != self.prefix and not path.startswith(self.prefix + "/"):
            path = self.prefix + path

        async def send_redirect(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 307:
                message["headers"] = [
                    (name, _without_host(value) if name == b"location" else value) for name, value in message["headers"]
                ]
            await send(message)

        await self.app({**scope, "root_path": self.prefix, "path": path}, receive, send_redirect)


def _without_host(location: bytes) -> bytes:
    return urlsplit(location)._replace(scheme=b"", netloc=b"").geturl()


def allowed_methods(request: Request) -> str:
    """The methods that the routes of a request's path take, as the header Allow has them."""
    tried = [(method, {**request.scope, "method": method}) for method in METHODS]
    routes = request.app.routes
    return ", ".join(
        method for method, scope in tried if any(route.matches(scope)[0] is Match.FULL for route in routes)
    )
