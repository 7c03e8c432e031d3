"""The stack of docker-compose.yml as compose-test drives it: a project, secrets and ports of its own.

Needs nothing but Python and a Docker engine with Compose.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SECRETS = ("LASRO_API_KEY", "LASRO_REDIS_PASSWORD", "LASRO_REWARD_SECRET")
LONGEST_S = 1800
ERASE_LINE = "\x1b[2K"


class StageError(Exception):
    """Something is not as it must be; the message says what was got and expected."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Stack:
    """`docker compose` with fixed settings; nothing of the user's .env or of a stack that runs already is touched."""

    def __init__(self, project: str, files: tuple[Path, ...] = (ROOT / "docker-compose.yml",)) -> None:
        self.project, self.files, self.api_key = project, files, secrets.token_hex(32)
        self.reward_secret = secrets.token_hex(32)
        self.reward_api_port, self.trainer_port = free_port(), free_port()
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in SECRETS},
            "LASRO_API_KEY": self.api_key,
            "LASRO_REDIS_PASSWORD": secrets.token_hex(32),
            "LASRO_REWARD_SECRET": self.reward_secret,
            "LASRO_REWARD_API_PORT": str(self.reward_api_port),
            "LASRO_TRAINER_PORT": str(self.trainer_port),
            "LASRO_REWARDS_SUBNET": os.environ.get("LASRO_REWARDS_SUBNET", "172.31.249.0/24"),
        }

    def command(self, *arguments: str) -> list[str]:
        files = [word for file in self.files for word in ("-f", str(file))]
        project = [
            "--project-directory",
            str(ROOT),
            "-p",
            self.project,
            "--env-file",
            os.devnull,
            "--progress",
            "plain",
        ]
        return ["docker", "compose", *project, *files, *arguments]

    def try_run(self, *arguments: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
        """Run a compose command; variables that are None are left out of its environment."""
        variables = {name: value for name, value in {**self.environment, **environment}.items() if value is not None}
        return run(self.command(*arguments), variables)

    def run(self, *arguments: str) -> str:
        """Its standard output; raises StageError with the end of what it said where it fails."""
        return succeeded(self.try_run(*arguments))

    def containers(self) -> list[dict[str, Any]]:
        """All of the project, as `docker compose ps` tells of them, the ended ones included."""
        return [json.loads(line) for line in self.run("ps", "-a", "--format", "json").splitlines() if line]

    def last_log_line(self, service: str) -> str:
        text = self.try_run("logs", "--no-color", "--no-log-prefix", service).stdout.replace(ERASE_LINE, "")
        return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")

    def get(self, port: int, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """JSON of a service as anybody with the key gets it from this machine; a body is posted."""
        headers = {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return json.load(response)
        except OSError as error:
            raise StageError(f"{path} at port {port}: {error}, expected an answer") from error

    def down(self) -> None:
        self.run("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "10")


def run(command: list[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LONGEST_S
    )


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
        raise StageError(f"{' '.join(done.args)}: status {done.returncode}, expected 0\n{end}")
    return done.stdout


def docker(*arguments: str) -> str:
    return succeeded(run(["docker", *arguments])).strip()


@contextmanager
def overriding(text: str) -> Iterator[Path]:
    """A compose file with that text beside docker-compose.yml."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "compose.yaml")
        path.write_text(text)
        yield path


missed: list[str] = []
"""Stages and figures over their limit; the others are gone through all the same."""


@contextmanager
def stage(name: str, limit_s: float | None = None) -> Iterator[None]:
    """Say how long what is inside took."""
    started = time.monotonic()
    yield
    figure(name, time.monotonic() - started, "s", limit_s)


def figure(name: str, value: float, unit: str, limit: float | None = None) -> None:
    """Say a measured figure, and remember where it is over the limit."""
    over = limit is not None and value > limit
    told = "" if limit is None else f"  ({'over the limit of' if over else 'limit'} {limit:g} {unit})"
    print(f"{name:<58} {value:7.1f} {unit}{told}", flush=True)
    if over:
        missed.append(name)
