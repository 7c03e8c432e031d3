"""The local stack with its real services as child processes."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from lasro.config import RewardSettings, ServiceSettings
from lasro.errors import UnreachableError
from lasro.redis_store.connection import connect
from lasro.wire import ScoreRequest, Status
from lasro_client.services.connect import services
from lasro_client.services.local_stack import LocalStack
from lasro_client.services.reward_client import RewardClient

JPEG = RewardSettings(
    name="jpeg-compressibility",
    serve="lasro_rewards.jpeg:compressibility",
    timeout_s=77,
    max_batch=9,
    concurrency=1,
    range=(-1000, 0),
    repeats=2,
    cache=False,
)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def processes_of(folder: Path) -> dict[int, str]:
    """Live processes that were started for a stack in `folder`, by the log they write to."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            log = os.readlink(entry / "fd" / "2")
        except OSError:
            continue
        if log.startswith(str(folder)):
            found[int(entry.name)] = Path(log).stem
    return found


def heed_ctrl_c() -> None:
    """Where the tests run in the background of a shell, Ctrl-C is ignored, and what they start would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_until(condition: Any, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(met)


def png() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def score(stack: LocalStack) -> Any:
    body = {"prompts": ["a"], "images": [png()], "rewards": [JPEG.name]}
    reply = httpx.post(f"{stack.reward_api}/v1/score", json=body, timeout=60, trust_env=False)
    return reply.json()["items"][0]["scores"][JPEG.name] if reply.status_code == 200 else reply.json()


@pytest.fixture(autouse=True)
def own_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LASRO_REDIS_URL", raising=False)
    monkeypatch.delenv("LASRO_API_KEY", raising=False)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    with LocalStack(tmp_path_factory.mktemp("stack"), [JPEG], workers=1) as running:
        yield running


def test_served_rewards_score(stack: LocalStack) -> None:
    """A served reward was not registered, or the API was not allowed to reach it on loopback."""
    assert score(stack)["status"] == "ok"


def test_served_rewards_are_registered_as_the_settings_say(stack: LocalStack) -> None:
    """Bug: a served reward had 30 s for a call of 32 images, and no setting of a run changed that."""
    with RewardClient(stack.reward_api) as client:
        info = client.reward(JPEG.name)
        assert {name: getattr(info, name) for name in JPEG.registered} == JPEG.registered
        stack._register({JPEG.name: info.url.removesuffix("/")})
        assert client.reward(JPEG.name).version == info.version, "registered alike, it is the same reward"


def test_a_redis_that_came_back_empty_is_given_the_rewards_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bug: what a run had registered was gone with Redis' data, and the run ended with 'not registered'."""
    request = ScoreRequest(prompts=["a"], images=[base64.b64decode(png())], rewards=[JPEG.name])
    with services(ServiceSettings(), [JPEG], tmp_path, trainer_cores=0) as connected:
        with connect(f"unix://{tmp_path}/services/redis.sock") as client:
            client.flushall()
        [item] = connected.rewards.score(request).items
        assert item.scores[JPEG.name].status is Status.OK
    assert "came back empty" in caplog.text
    assert caplog.text.count("this run registers its rewards again") == 1


def works(stack: LocalStack) -> bool:
    """Whether everything answers."""
    trainer = httpx.get(f"{stack.surrogate_trainer}/health/ready", timeout=60, trust_env=False)
    return trainer.status_code == 200 and score(stack)["status"] == "ok"


@pytest.mark.parametrize("victim", ["reward_api", "redis", f"reward-{JPEG.name}", "worker-1", "surrogate_trainer"])
def test_what_dies_comes_back(stack: LocalStack, victim: str) -> None:
    """A crashed service stayed away, came back late or on another port, or took the others with it."""
    before = processes_of(stack.folder)
    (pid,) = (pid for pid, name in before.items() if name == victim)
    busy = max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: pid not in processes_of(stack.folder), 60)
    assert wait_until(lambda: set(processes_of(stack.folder).values()) == set(before.values()), 60)
    assert wait_until(lambda: works(stack), 60 * busy)
    assert time.monotonic() - killed < 20 * busy
    assert {p: n for p, n in before.items() if n != victim}.items() <= processes_of(stack.folder).items()
    stack.check()


def test_a_service_that_takes_its_time_to_say_that_it_is_ready_is_waited_for(
    serve: Callable[[ASGIApp], str], tmp_path: Path
) -> None:
    """Each question was given up after a second: the check of a large model's run, or a busy machine, never passed."""

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(1.5)
        await Response("ready")(scope, receive, send)

    LocalStack(tmp_path)._wait_for(serve(slow), time.monotonic() + 60)


def test_registered_again_in_the_same_folder(tmp_path: Path) -> None:
    """A second start in a folder failed with 409, or kept the address of the first."""
    for _ in range(2):
        with LocalStack(tmp_path, [JPEG], trainer=False) as stack:
            assert score(stack)["status"] == "ok"
        assert processes_of(tmp_path) == {}


def test_a_key_protects_the_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With LASRO_API_KEY set, the stack could not register its own rewards, or they refused the API."""
    monkeypatch.setenv("LASRO_API_KEY", "secret")
    with LocalStack(tmp_path, [JPEG], trainer=False) as stack:
        assert httpx.get(f"{stack.reward_api}/v1/rewards", trust_env=False).status_code == 401
        headers = {"Authorization": "Bearer secret"}
        probe = httpx.post(f"{stack.reward_api}/v1/rewards/{JPEG.name}/probe", headers=headers, trust_env=False)
        assert probe.json()["status"] == "ok"


def test_hopeless_services_are_given_up(tmp_path: Path) -> None:
    """A reward that cannot be imported was started for ever, or its reason stayed in a log nobody was pointed to."""
    broken = RewardSettings(name="broken", serve="no_such_module:reward")
    with pytest.raises(UnreachableError, match=r"(?s)reward-broken.*no_such_module.*reward-broken\.log"):
        LocalStack(tmp_path, [broken], trainer=False).__enter__()
    assert processes_of(tmp_path) == {}


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.proof),  # ends as by SIGTERM, with another status
        (signal.SIGKILL, -9),
    ],
)
def test_up_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, status: int) -> None:
    """`lasro up` printed more than its one line, took over 10 s to end, or left services running."""
    up = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "lasro_client.cli.main",
            "up",
            "--json",
            "--folder",
            str(tmp_path),
            "--no-rewards",
            "--workers",
            "2",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    )
    assert up.stdout is not None
    line = up.stdout.readline()
    assert line, up.communicate()[1]
    urls = json.loads(line)
    assert list(urls) == ["reward_api", "surrogate_trainer", "redis"]
    for url in (urls["reward_api"], urls["surrogate_trainer"]):
        assert httpx.get(f"{url}/health/ready", timeout=10, trust_env=False).status_code == 200
    assert set(processes_of(tmp_path).values()) == {"redis", "reward_api", "surrogate_trainer", "worker-1", "worker-2"}
    started = time.monotonic()
    os.kill(up.pid, number)
    rest, errors = up.communicate(timeout=15)
    assert time.monotonic() - started < 10
    assert rest == ""
    assert errors.count("\n") <= 1
    assert up.returncode == status
    assert wait_until(lambda: processes_of(tmp_path) == {}, 10 - (time.monotonic() - started))
