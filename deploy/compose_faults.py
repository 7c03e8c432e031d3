"""Bad input, one after the other: the stack does not come up, and the container concerned says why in one line."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import NamedTuple

from compose_stack import ROOT, Stack, StageError, docker, overriding, stage


class Fault(NamedTuple):
    """What is wrong, in which service, and words of the line that says so: its log's last one, or Compose's own."""

    name: str
    service: str
    says: str
    override: str = ""
    in_log: bool = True


FAULTS = (
    Fault(
        "wrong Redis password",
        "reward-api",
        "Redis refuses the name or password in LASRO_REDIS_URL",
        "services: {reward-api: {environment: {LASRO_REDIS_URL: 'redis://:wrong@redis:6379/0'}}}",
    ),
    Fault(
        "wrong Redis password, trainer",
        "surrogate-trainer",
        "Redis refuses the name or password in LASRO_REDIS_URL",
        "services: {surrogate-trainer: {environment: {LASRO_REDIS_URL: 'redis://:wrong@redis:6379/0'}}}",
    ),
    Fault(
        "model folder absent",
        "surrogate-trainer",
        "/models/none: no model_index.json there",
        "services: {surrogate-trainer: {environment: {LASRO_PROBE_MODEL: /models/none}}}",
    ),
    Fault(
        "trainer's volume read-only",
        "surrogate-trainer",
        "Read-only file system; expected a writable folder",
        "services: {surrogate-trainer: {volumes: ['trainer:/data:ro']}}",
    ),
    Fault(
        "volume of Redis read-only",
        "redis",
        "Read-only file system",
        "services: {redis: {volumes: ['redis:/data:ro']}}",
    ),
    Fault(
        "a GPU asked for that torch does not see",
        "surrogate-trainer",
        "got cuda, but torch",
        "services: {surrogate-trainer: {environment: {LASRO_PROBE_DEVICE: cuda}}}",
    ),
)


def try_faults(stack: Stack) -> None:
    with stage("fault: secret missing"):
        done = stack.try_run("up", "-d", "--wait", LASRO_API_KEY=None)
        check("secret missing", done.returncode, done.stderr, "LASRO_API_KEY is missing a value: run the one-liner")
    with stage("fault: port taken"), socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        done = stack.try_run("up", "-d", "--wait", "reward-api", LASRO_REWARD_API_PORT=port)
        check("port taken", done.returncode, done.stderr, port)
    stack.down()
    for fault in FAULTS:
        with stage(f"fault: {fault.name}"), overriding(fault.override) as override:
            _try(stack, fault, (*stack.files, override))
    if "nvidia" not in docker("info", "--format", "{{json .Runtimes}}"):
        with stage("fault: the GPU override without a GPU"):
            _without_gpu(stack)


def _try(stack: Stack, fault: Fault, files: tuple[Path, ...]) -> None:
    faulty = Stack(stack.project, files)
    faulty.environment = stack.environment
    try:
        done = faulty.try_run("up", "-d", "--wait", "--wait-timeout", "300", fault.service)
        check(fault.name, done.returncode, faulty.last_log_line(fault.service) or done.stderr, fault.says)
    finally:
        faulty.down()


def _without_gpu(stack: Stack) -> None:
    """The image for a GPU, gigabytes, is not needed to see that the engine has none: the other one stands in."""
    docker("tag", "lasro/surrogate-trainer:latest", "lasro/surrogate-trainer:latest-cuda")
    try:
        fault = Fault("the GPU override without a GPU", "surrogate-trainer", "could not select device driver")
        faulty = Stack(stack.project, (*stack.files, ROOT / "deploy" / "compose.gpu.yaml"))
        done = faulty.try_run("up", "-d", "--wait", fault.service)
        check(fault.name, done.returncode, done.stderr, fault.says)
    finally:
        stack.down()
        docker("image", "rm", "lasro/surrogate-trainer:latest-cuda")


def check(name: str, status: int, said: str, expected: str) -> None:
    lines = [line.strip() for line in said.splitlines() if expected in line]
    if status == 0 or not lines:
        raise StageError(
            f"{name}: got status {status} and {said[-600:]!r}, expected a failure with {expected!r} in a line"
        )
    print(f"    {lines[-1][:200]}", flush=True)
