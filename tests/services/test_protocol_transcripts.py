"""docs/protocols.md: a server of each protocol plugged in by the command line, and what goes over the wire then."""

from __future__ import annotations

import base64
import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from pages import check_page
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
    url: str, server_url: str, recorder: Recorder, write_docs: bool
) -> None:
    """Bug: the documentation shows commands, requests or replies that are not, or no longer, those of the code."""
    assert {case.protocol for case in CASES} == set(Protocol)
    parts = {case.part: transcript(case, url, server_url, recorder) for case in CASES}
    check_page("protocols.md", parts, write_docs)
