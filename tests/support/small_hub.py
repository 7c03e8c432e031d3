"""A hub of data sets on loopback, as far as the library `datasets` asks one: files of one commit.

python small_hub.py FOLDER: serves FOLDER/OWNER/NAME/... and prints its URL.
"""

from __future__ import annotations

import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = hashlib.sha1(b"the only one").hexdigest()
REVISIONS = ("main", COMMIT)


class SmallHub(BaseHTTPRequestHandler):
    """Answers for the files below `folder`."""

    folder: Path
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Only the address is printed."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self._answer(body)

    def do_GET(self) -> None:
        self._answer("")

    def _answer(self, body: str) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[0] == "api"
        if api:
            parts = parts[1:]
        if parts[0] != "datasets" or len(parts) < 3 or not (self.folder / parts[1] / parts[2]).is_dir():
            return self._refuse("RepoNotFound")
        root, rest = self.folder / parts[1] / parts[2], parts[3:]
        if len(rest) > 1 and rest[1] not in REVISIONS:
            return self._refuse("RevisionNotFound")
        files = {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}
        if not api:
            name = "/".join(rest[2:])
            return self._file(files[name]) if name in files else self._refuse("EntryNotFound")
        if rest and rest[0] in ("tree", "paths-info"):
            below = "/".join(rest[2:])
            wanted = json.loads(body)["paths"] if body.startswith("{") else list(files)
            if rest[0] == "tree":
                wanted = [name for name in files if name.startswith(below)]
            return self._json([self._entry(name, files[name]) for name in wanted if name in files])
        siblings = [{"rfilename": name} for name in files]
        return self._json({"id": "/".join(parts[1:3]), "sha": COMMIT, "siblings": siblings, "tags": []})

    def _entry(self, name: str, path: Path) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}

    def _file(self, path: Path) -> None:
        content, status, headers = path.read_bytes(), 200, {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": COMMIT}
        if (span := self.headers.get("Range", "")).startswith("bytes="):
            first, _, last = span.removeprefix("bytes=").partition("-")
            end = min(int(last or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
            content, status = content[int(first) : end + 1], 206
        self._send(status, content, headers | {"Accept-Ranges": "bytes"})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", "X-Repo-Commit": COMMIT})

    def _refuse(self, code: str) -> None:
        self._send(404, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def main() -> None:
    SmallHub.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), SmallHub)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
