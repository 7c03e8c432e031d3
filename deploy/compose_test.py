"""`make compose-test`: the whole stack in a real engine, from its images to its end, with the time of each stage.

python deploy/compose_test.py            everything
python deploy/compose_test.py --faults   only what happens on bad input

Exit status 1 where something does not work or is over its limit. Takes down whatever it has brought up.
"""

from __future__ import annotations

import base64
import shutil
import struct
import sys
import tempfile
import time
import zlib
from pathlib import Path

from compose_faults import try_faults
from compose_stack import ROOT, Stack, StageError, docker, figure, missed, run, stage, succeeded

IMAGES = {"reward-api": 120, "rewards": None, "surrogate-trainer": 1400, "client": 1400}
"""Images, and by how many MB each may exceed the one it is made from."""
BASE = "python:3.11-slim"
CONTEXT = ("docker-compose.yml", ".dockerignore", "deploy", "lasro", "client", "services", "configs", "LICENSE")
CONTEXT += ("README.md", "constraints.txt", "pyproject.toml")
SERVICES = ("redis", "reward-api", "reward-worker", "surrogate-trainer", "reward-attribute-binding", "reward-jpeg")
PROMPT = "a red circle and a blue star on a white background"
TRAIN = (
    "train.rounds=2",
    "train.carried_groups=8",
    "evaluation.prompts=4",
    "evaluation.drift_prompts=2",
    "name=compose-test",
)
REWARD = """from lasro.reward_sdk import reward

@reward
def brightness(images, prompts, metadata):
    return [image.convert("L").resize((1, 1)).getpixel((0, 0)) / 255 for image in images]
"""


def main(arguments: list[str]) -> int:
    stack = Stack("lasro-compose-test")
    try:
        with stage("images built or found in the cache"):
            stack.run("--profile", "client", "build")
        if arguments != ["--faults"]:
            measure_images(stack)
            exercise(stack)
        try_faults(stack)
    except StageError as error:
        print(f"compose-test: {error}", file=sys.stderr)
        return 1
    finally:
        with stage("everything taken down"):
            run(["docker", "rm", "-f", "-v", another(stack)])  # outside the project, and may not be there
            stack.down()
    if missed:
        print(f"compose-test: everything works, but over the limit: {', '.join(missed)}", file=sys.stderr)
        return 1
    print("compose-test: all stages passed")
    return 0


def measure_images(stack: Stack) -> None:
    base = int(docker("image", "inspect", "-f", "{{.Size}}", BASE))
    for name, limit in IMAGES.items():
        size = int(docker("image", "inspect", "-f", "{{.Size}}", f"lasro/{name}:latest"))
        figure(f"image {name} above {BASE}", (size - base) / 1e6, "MB", limit)
    with tempfile.TemporaryDirectory() as folder:
        for name in CONTEXT:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder, name))
        command = ["docker", "compose", "--project-directory", folder, "-p", "lasro-rebuild", "build"]
        environment = {**stack.environment, "LASRO_TAG": "compose-test"}
        succeeded(run(command, environment))
        with Path(folder, "lasro", "wire", "codec.py").open("a") as file:
            file.write(f"# {time.time()}\n")
        with stage("images built again after a change of code", 20):
            succeeded(run(command, environment))
    docker("image", "rm", *(f"lasro/{name}:compose-test" for name in IMAGES))


def exercise(stack: Stack) -> None:
    with stage("up --wait", 60):
        stack.run("up", "-d", "--wait")
    figure("memory of the idle stack", memory_mib(stack), "MiB", 1536)
    with stage("a reward in another container registered and called"):
        register_another(stack)
    with stage("two rounds of training"):
        settings = [word for setting in TRAIN for word in ("--set", setting)]
        stack.run("run", "--rm", "-T", "client", "train", "configs/demo.toml", *settings)
    with stage("surrogate scores asked for from outside"):
        before = scored(stack)
    with stage("up --scale reward-worker=4, and back to one"):
        stack.run("up", "-d", "--wait", "--no-recreate", "--scale", "reward-worker=4", "reward-worker")
        expect(sum(each["Service"] == "reward-worker" for each in stack.containers()), 4, "workers")
        stack.run("up", "-d", "--wait", "--no-recreate", "--scale", "reward-worker=1", "reward-worker")
    for service in SERVICES:
        with stage(f"{service} killed and brought back"):
            stack.run("kill", service)
            expect(is_up(stack, service), False, f"{service} up after it was killed")
            stack.run("up", "-d", "--wait", "--no-recreate")
            expect(is_up(stack, service), True, f"{service} up again")
    with stage("the same scores, and the reward, after all that"):
        expect(scored(stack), before, "surrogate scores")
        expect("brightness" in stack.run("run", "--rm", "-T", "client", "rewards", "ls"), True, "brightness registered")
    for service in reversed(SERVICES):
        with stage(f"{service} stopped", 5):
            stack.run("stop", service)
    docker("rm", "-f", "-v", another(stack))
    stack.down()


def register_another(stack: Stack) -> None:
    """As docs/deploy.md does it, the file handed over inside the command."""
    start = (
        'printf %s "$REWARD" > /tmp/brightness.py && cd /tmp && exec python -m lasro.reward_sdk brightness:brightness'
    )
    options = ["--network", f"{stack.project}_rewards", "--network-alias", "brightness", "--entrypoint", "sh"]
    secret = ["-e", f"LASRO_API_KEY={stack.reward_secret}", "-e", f"REWARD={REWARD}"]
    name = another(stack)
    docker(
        "run", "-d", "--name", name, "--read-only", "--tmpfs", "/tmp", *options, *secret, "lasro/rewards", "-c", start
    )
    while docker("inspect", "-f", "{{.State.Health.Status}}", name) == "starting":
        time.sleep(0.2)
    client = ["run", "--rm", "-T", "-e", f"LASRO_REWARD_SECRET={stack.reward_secret}", "client", "rewards"]
    stack.run(*client, "add", "brightness", "http://brightness:8100/")
    stack.run(*client, "test", "brightness")


def another(stack: Stack) -> str:
    """The container of a reward that is not of the project."""
    return f"{stack.project}-brightness"


def scored(stack: Stack) -> list[float]:
    """Scores of two pictures by the surrogate that was just trained."""
    pictures = [base64.b64encode(flat_png(128, colour)).decode() for colour in (b"\xff\x00\x00", b"\xff\xff\xff")]
    body = {"prompts": [PROMPT] * 2, "images": pictures}
    return stack.get(stack.trainer_port, "/v1/runs/compose-test/score", body)["scores"]


def flat_png(side: int, colour: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + colour * side) * side)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def memory_mib(stack: Stack) -> float:
    units = {"B": 1 / 2**20, "KiB": 1 / 1024, "MiB": 1.0, "GiB": 1024.0}
    names = [container["ID"] for container in stack.containers() if container["State"] == "running"]
    total = 0.0
    for used in docker("stats", "--no-stream", "--format", "{{.MemUsage}}", *names).splitlines():
        text = used.partition(" / ")[0]
        number = text.rstrip("BKiMG")
        total += float(number) * units[text.removeprefix(number)]
    return total


def is_up(stack: Stack, service: str) -> bool:
    found = [each for each in stack.containers() if each["Service"] == service]
    return bool(found) and all(each["State"] == "running" and each["Health"] == "healthy" for each in found)


def expect(got: object, expected: object, what: str) -> None:
    if got != expected:
        raise StageError(f"{what}: got {got}, expected {expected}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
