"""A hub of our own, with as much of the real one's HTTP as an upload asks for."""

from __future__ import annotations

import base64
import json

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

TOKEN = "hf_of_nobody"


class FakeHub:
    """`files`: path -> content, by repository. `refuses`: HTTP status of all commits, where there is one."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.refuses: int | None = None
        self.url = ""
        routes = [
            Route("/api/whoami-v2", self._whoami),
            Route("/api/repos/create", self._create, methods=["POST"]),
            Route("/api/validate-yaml", self._validate, methods=["POST"]),
            Route("/api/models/{repo:path}/preupload/main", self._preupload, methods=["POST"]),
            Route("/api/models/{repo:path}/commit/main", self._commit, methods=["POST"]),
        ]
        self.app = Starlette(routes=routes)

    async def _whoami(self, request: Request) -> JSONResponse:
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return JSONResponse({"error": "Invalid credentials"}, 401)
        return JSONResponse({"name": "somebody", "type": "user", "orgs": []})

    async def _create(self, request: Request) -> JSONResponse:
        asked = await request.json()
        repo = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
        if repo in self.files:
            return JSONResponse({"error": "You already created this model repo", "url": f"{self.url}/{repo}"}, 409)
        self.files[repo] = {}
        return JSONResponse({"url": f"{self.url}/{repo}", "name": repo})

    async def _validate(self, request: Request) -> JSONResponse:
        return JSONResponse({"errors": [], "warnings": []})

    async def _preupload(self, request: Request) -> JSONResponse:
        asked = (await request.json())["files"]
        found = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
        return JSONResponse({"files": found})

    async def _commit(self, request: Request) -> JSONResponse:
        if self.refuses is not None:
            return JSONResponse({"error": "no room left"}, self.refuses)
        repo = request.path_params["repo"]
        for line in (await request.body()).splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.files[repo][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return JSONResponse({"commitUrl": f"{self.url}/{repo}/commit/0", "commitOid": "0" * 40, "success": True})
