"""docs/protocols.md: a server of each protocol plugged in by the command line, and what goes over the wire then."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from pages import check_page
from pickle_server import PickleService, pickle_service
from protocol_servers import SCORES, SHADES, Servers, png
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from typer.testing import CliRunner

from lasro.wire import Protocol
from lasro_client.cli.rewards import rewards_app
from lasro_reward_api.protocols import CODECS

LINE = 110
TENSORS = [{"name": "IMAGE", "holds": "images"}, {"name": "PROMPT", "holds": "prompts"}]
EACH = {"caption": "{{prompt}}", "picture": "data:{{image_type}};base64,{{image}}"}


@dataclass(frozen=True)
class Case:
    """One part of the page: a server at `path`, the protocol that it speaks and its settings."""

    part: str
    protocol: Protocol
    path: str
    mapping: dict[str, Any] = field(default_factory=dict)
    more: tuple[str, ...] = ()


CASES = [
    Case("native", Protocol.NATIVE, "/", more=("--range", "0", "1")),
    Case("flow-factory", Protocol.FLOW_FACTORY, ""),
    Case("unirl", Protocol.UNIRL, "", {"reward": "red"}),
    Case("openai-chat", Protocol.OPENAI_CHAT, "/v1", {"model": "red-vl"}, ("--timeout-s", "120", "--concurrency", "8")),
    Case("openai-chat-answers", Protocol.OPENAI_CHAT, "/v1", {"model": "red-vl", "answers": {"yes": 1, "no": 0}}),
    Case("oip-v2", Protocol.OIP_V2, "", {"model": "red", "inputs": TENSORS, "output": "SCORE", "column": True}),
    Case(
        "mapping",
        Protocol.MAPPING,
        "/rank",
        {"request": {"items": {"$each": EACH}}, "scores": "items[*].value", "errors": "items[*].why"},
    ),
]


@dataclass
class Exchange:
    path: str
    request: bytes = b""
    reply: bytes = b""


class Recorder:
    """Remembers what an app was sent and what it answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self.exchanges = app, list[Exchange]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope.get("path", ""))
        if scope["type"] == "http":
            self.exchanges.append(exchange)

        async def hear() -> Message:
            message = await receive()
            exchange.request += message.get("body", b"")
            return message

        async def say(message: Message) -> None:
            exchange.reply += message.get("body", b"")
            await send(message)

        await self._app(scope, hear, say)


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder(Servers().app)


@pytest.fixture(scope="module")
def server_url(recorder: Recorder, serve: Callable[[ASGIApp], str]) -> str:
    return serve(recorder)


def lasro(url: str, *arguments: str) -> str:
    """What `lasro rewards ...` prints."""
    done = CliRunner().invoke(rewards_app, list(arguments), env={"LASRO_REWARD_API_URL": url})
    assert done.exit_code == 0, done.output
    return done.stdout.strip()


def transcript(case: Case, url: str, server_url: str, recorder: Recorder) -> str:
    """The commands with their output, one score request, the call that it makes, and the answer."""
    name = f"red-{case.part}"
    protocol = () if case.protocol is Protocol.NATIVE else ("--protocol", case.protocol)
    mapping = ("--mapping", json.dumps(case.mapping)) if case.mapping else ()
    add = ("add", name, server_url + case.path, *protocol, *case.more, *mapping)
    commands = [(add, lasro(url, *add)), (test := ("test", name, "--json"), lasro(url, *test))]
    recorder.exchanges.clear()
    count = 1 if CODECS[case.protocol].one_image(case.mapping) else 2
    images = [base64.b64encode(png(shade)).decode() for shade in SHADES[:count]]
    request = {"prompts": ["a red square"] * count, "images": images, "rewards": [name]}
    answer = httpx.post(f"{url}/v1/score", json=request, timeout=60).json()
    assert [item["total"] for item in answer["items"]] == pytest.approx(SCORES[:count])
    (exchange,) = recorder.exchanges
    shown = [f"$ {typed(arguments)}\n{printed}" for arguments, printed in commands]
    steps = (
        ("The reward API is sent `POST /v1/score`", request),
        (f"the server is sent `POST {exchange.path}`", json.loads(exchange.request)),
        ("the server answers", json.loads(exchange.reply)),
        ("the reward API answers", answer),
    )
    text = "```console\n" + "\n".join(shown) + "\n```\n\n"
    text += "\n\n".join(f"{title}:\n\n```json\n{laid_out(brief(value))}\n```" for title, value in steps)
    return without_chance(text, server_url)


@pytest.fixture
def bridged() -> Iterator[tuple[PickleService, str]]:
    """A pickle server, and the URL of the process of `lasro rewards bridge` in front of it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pickle_service() as service:
        command = [sys.executable, "-m", "lasro_client.cli.main", "rewards", "bridge", service.url, "--port", str(port)]
        process = subprocess.Popen(command, env=os.environ | {"LASRO_LOG_LEVEL": "warning"})
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until_ready(process, url)
            yield service, url
        finally:
            process.terminate()
            process.wait(30)


def wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    give_up_s = time.monotonic() + 60
    while True:
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        assert process.poll() is None, "the bridge ended while starting"
        assert time.monotonic() < give_up_s, "the bridge did not start"
        time.sleep(0.05)


def bridge_transcript(url: str, service: PickleService, bridge_url: str) -> str:
    """The commands, what the pickle server is sent and answers, and what the reward API makes of it."""
    name, add = "red-pickle", ("add", "red-pickle", f"{bridge_url}/")
    commands = [(add, lasro(url, *add)), (test := ("test", name, "--json"), lasro(url, *test))]
    service.requests.clear()
    images = [base64.b64encode(png(shade)).decode() for shade in SHADES[:2]]
    metadata = [{"tag": "colors"}, None]
    request = {"prompts": ["a red square"] * 2, "images": images, "rewards": [name], "metadata": metadata}
    answer = httpx.post(f"{url}/v1/score", json=request, timeout=60).json()
    assert [item["total"] for item in answer["items"]] == pytest.approx(SCORES[:2])
    (sent,) = service.requests
    kept = {key: value for key, value in sent.items() if key != "images"}
    assert all(image.startswith(b"\xff\xd8\xff") for image in sent["images"])
    shown = [f"$ lasro rewards bridge {service.url} --port 8100 &"]
    shown += [f"$ {typed(arguments)}\n{printed}" for arguments, printed in commands]
    fields = ['    "images": [b"\\xff\\xd8\\xff...", b"\\xff\\xd8\\xff..."],']
    fields += [f'    "{key}": {value},'.replace("'", '"') for key, value in kept.items()]
    text = "```console\n" + "\n".join(shown) + "\n```\n\n"
    text += "The pickle server is sent, as one pickle:\n\n```python\n{\n" + "\n".join(fields) + "\n}\n```\n\n"
    text += 'it answers, as another, `{"scores": array([0.2, 0.8])}`, and the reward API:\n\n'
    text += f"```json\n{laid_out(brief(answer))}\n```"
    return without_chance(text.replace(service.url, "http://127.0.0.1:18085"), bridge_url).replace(":8000/", ":8100/")


def typed(arguments: Sequence[str]) -> str:
    """A command as one types it, settings on a line of their own."""
    return f"lasro rewards {shlex.join(arguments)}".replace(" --mapping", " \\\n    --mapping")


def laid_out(value: Any, depth: int = 0) -> str:
    """JSON with everything on one line that fits there."""
    whole = json.dumps(value)
    if 2 * depth + len(whole) <= LINE or not isinstance(value, dict | list):
        return whole
    inner = "  " * (depth + 1)
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(key)}: {laid_out(one, depth + 1)}" for key, one in value.items()]
    else:
        lines = [inner + laid_out(one, depth + 1) for one in value]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return f"{first}\n" + ",\n".join(lines) + f"\n{'  ' * depth}{last}"


def brief(value: Any) -> Any:
    """A JSON value with images cut short, and numbers to the digits that every machine agrees on."""
    if isinstance(value, dict):
        return {key: brief(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [brief(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, str):
        return re.sub(r"(iVBORw0KGgo)[A-Za-z0-9+/=]+", r"\1...", value)
    return value


def without_chance(text: str, server_url: str) -> str:
    """Free of ports and times, which differ from run to run."""
    text = text.replace(server_url, "http://127.0.0.1:8000")
    return re.sub(r'("latency_s": )[0-9.e-]+', r"\g<1>0.004", text)


def test_every_protocol_has_a_transcript_that_is_true(
    url: str, server_url: str, recorder: Recorder, bridged: tuple[PickleService, str], write_docs: bool
) -> None:
    """Bug: the documentation shows commands, requests or replies that are not, or no longer, those of the code."""
    assert {case.protocol for case in CASES} == set(Protocol)
    parts = {case.part: transcript(case, url, server_url, recorder) for case in CASES}
    parts["pickle"] = bridge_transcript(url, *bridged)
    check_page("protocols.md", parts, write_docs)
