"""Commands that talk to running services: rewards, surrogate."""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from lasro_client.cli.output import ApiKey, AsJson, RewardApi, Trainer, print_json, print_table

rewards_app = typer.Typer(help="Rewards registered at the reward API, and serving one.", no_args_is_help=True)
surrogate_app = typer.Typer(help="The learned surrogate at the surrogate trainer.", no_args_is_help=True)
SERVING_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
"""What `serve` and `bridge` need beyond the base installation."""
Name = Annotated[str, typer.Argument(help="Name of the reward.", show_default=False)]
Wait = Annotated[
    float, typer.Option("--wait", min=0, help="Seconds to try again while the reward API or its Redis is starting.")
]
WAIT_S = 10.0


@rewards_app.command("ls")
def list_rewards(reward_api: RewardApi, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Registered rewards."""
    rewards = _call(reward_api, api_key, "GET", "/v1/rewards")
    if as_json:
        print_json(rewards)
    else:
        columns = ("name", "protocol", "version", "url")
        print_table(columns, [[reward[column] for column in columns] for reward in rewards["rewards"]])


@rewards_app.command("add")
def add_reward(
    name: Name,
    url: Annotated[str, typer.Argument(help="Where it answers.", show_default=False)],
    reward_api: RewardApi,
    protocol: Annotated[str, typer.Option(help="What the endpoint speaks.")] = "native",
    timeout_s: Annotated[float | None, typer.Option(help="For one call.")] = None,
    max_batch: Annotated[int | None, typer.Option(help="Images per call.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Calls in flight.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Calls averaged per image.")] = None,
    cache: Annotated[bool | None, typer.Option(help="Reuse the score of the same image.")] = None,
    range_: Annotated[tuple[float, float] | None, typer.Option("--range", help="Expected lowest and highest.")] = None,
    header: Annotated[list[str] | None, typer.Option(help="NAME=VALUE sent with each call. Repeatable.")] = None,
    secret: Annotated[
        str | None,
        typer.Option(
            envvar="LASRO_REWARD_SECRET",
            help="Bearer token sent to it, or whsec_... to sign calls.",
            show_default=False,
        ),
    ] = None,
    signed_replies: Annotated[bool, typer.Option(help="Take only replies signed with the secret.")] = False,
    mapping: Annotated[str | None, typer.Option(help="Protocol settings: a JSON object, or a file with one.")] = None,
    replace: Annotated[bool, typer.Option(help="Make a new version of a name in use.")] = False,
    wait_s: Wait = WAIT_S,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Register an endpoint as a reward; it is not called yet, see `lasro rewards test`."""
    given = {
        "name": name, "url": url, "protocol": protocol, "timeout_s": timeout_s, "max_batch": max_batch,
        "concurrency": concurrency, "repeats": repeats, "cache": cache, "range": range_, "secret": secret,
        "signed_replies": signed_replies or None,
        "headers": _pairs(header) if header else None,
        "mapping": _json_object(mapping, "--mapping") if mapping else None,
    }  # fmt: skip
    spec = {key: value for key, value in given.items() if value is not None}
    method, path = ("PUT", f"/v1/rewards/{name}") if replace else ("POST", "/v1/rewards")
    info = _call_when_up(wait_s, reward_api, api_key, method, path, json=spec)
    print_json(info) if as_json else print(f"{info['name']} version {info['version']}")


@rewards_app.command("test")
def probe_reward(
    name: Name, reward_api: RewardApi, wait_s: Wait = WAIT_S, api_key: ApiKey = None, as_json: AsJson = False
) -> None:
    """Call a reward once with a known image; exit status 1 unless it answers with a finite number."""
    probe = _call_when_up(wait_s, reward_api, api_key, "POST", f"/v1/rewards/{name}/probe")
    if as_json:
        print_json(probe)
    else:
        columns = ("status", "score", "latency_s", "error")
        print_table(columns, [[probe[column] for column in columns]])
    if probe["status"] != "ok":
        raise typer.Exit(1)


@rewards_app.command("rm")
def remove_reward(name: Name, reward_api: RewardApi, api_key: ApiKey = None, as_json: AsJson = False) -> None:
    """Take a reward out of the registry."""
    _call(reward_api, api_key, "DELETE", f"/v1/rewards/{name}")
    print_json({"removed": name}) if as_json else print(f"removed {name}")


@rewards_app.command("serve")
def serve_reward(
    target: Annotated[str, typer.Argument(metavar="MODULE:FUNCTION", help="An `@reward`.", show_default=False)],
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to bind.")] = 8100,
) -> None:
    """Serve an `@reward` function at POST http://HOST:PORT/ until Ctrl-C."""
    _become("lasro.reward_sdk", target, host=host, port=port)


class ImageFormat(StrEnum):
    JPEG = "jpeg"
    PNG = "png"


@rewards_app.command("bridge")
def bridge_reward(
    url: Annotated[str, typer.Argument(help="Where the pickle server answers.", show_default=False)],
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to bind.")] = 8100,
    images: Annotated[ImageFormat, typer.Option(help="What it is sent: all of them read JPEG.")] = ImageFormat.JPEG,
    scores: Annotated[str | None, typer.Option(help="Key of its scores.", show_default="scores or outputs")] = None,
    send: Annotated[str | None, typer.Option(help="More of the request: a JSON object, or a file with one.")] = None,
    timeout_s: Annotated[float, typer.Option(help="For one call of it.")] = 120.0,
) -> None:
    """Serve a reward server that speaks pickle, as flow_grpo's do, at POST http://HOST:PORT/ until Ctrl-C.

    Its answers are read without running them: plain types and numpy arrays of numbers, nothing else.
    """
    more = {} if send is None else {"bridge_send": json.dumps(_json_object(send, "--send"))}
    chosen = {} if scores is None else {"bridge_scores": scores}
    _become(
        "lasro_rewards.pickle_bridge",
        host=host, port=port, bridge_url=url, bridge_images=images, bridge_timeout_s=timeout_s, **more, **chosen,
    )  # fmt: skip


def _become(module: str, *arguments: str, **settings: object) -> NoReturn:
    """Run a service's module in place of this process, with settings of its environment."""
    for package in SERVING_PACKAGES:
        if find_spec(package) is None:
            raise ModuleNotFoundError(name=package)
    os.environ |= {f"LASRO_{name.upper()}": str(value) for name, value in settings.items()}
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


@surrogate_app.command("status")
def surrogate_status(
    surrogate_trainer: Trainer,
    run: Annotated[str | None, typer.Argument(help="Absent: all runs.", show_default=False)] = None,
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Version, steps, pair accuracy and replay of the surrogates."""
    path = "/v1/runs" if run is None else f"/v1/runs/{run}"
    reply = _call(surrogate_trainer, api_key, "GET", path)
    if as_json:
        print_json(reply)
        return
    columns = ("run", "version", "steps", "replay_groups", "held_out_pair_accuracy", "reward_gap", "queue_lag")
    rows = reply["runs"] if run is None else [reply]
    print_table([column.replace("_", " ") for column in columns], [[row[key] for key in columns] for row in rows])


@surrogate_app.command("score")
def surrogate_score(
    surrogate_trainer: Trainer,
    run: Annotated[str, typer.Argument(help="Run at the trainer.", show_default=False)],
    images: Annotated[list[Path], typer.Argument(help="PNG files of the model's size.", show_default=False)],
    prompt: Annotated[list[str], typer.Option(help="One for all images, or one for each. Repeatable.")],
    api_key: ApiKey = None,
    as_json: AsJson = False,
) -> None:
    """Scores of images by the learned surrogate; comparable only within one prompt and one version."""
    if len(prompt) not in (1, len(images)):
        raise typer.BadParameter(f"got {len(prompt)} for {len(images)} images", param_hint="--prompt")
    prompts = prompt if len(prompt) == len(images) else prompt * len(images)
    body = {"prompts": prompts, "images": [base64.b64encode(_read_bytes(path)).decode() for path in images]}
    reply = _call(surrogate_trainer, api_key, "POST", f"/v1/runs/{run}/score", json=body)
    if as_json:
        print_json(reply)
    else:
        print_table(("image", "score"), zip(images, reply["scores"], strict=True))


def _call(url: str, api_key: str | None, method: str, path: str, **options: Any) -> Any:
    from lasro_client.services import http

    with http.connect(url, api_key) as client:
        response = http.send(client, method, path, **options)
        return response.json() if response.content else None


def _call_when_up(wait_s: float, url: str, api_key: str | None, method: str, path: str, **options: Any) -> Any:
    """`_call`, made again for `wait_s` seconds while the service or its Redis is away, which is said once."""
    from lasro.errors import LockedOutError
    from lasro_client.services.retry import AWAY_OR_BUSY, with_retry

    failures = 0

    def attempt() -> Any:
        nonlocal failures
        try:
            return _call(url, api_key, method, path, **options)
        except AWAY_OR_BUSY as error:
            failures += 1
            if failures == 1 and wait_s and not isinstance(error, LockedOutError):
                print(f"lasro: {error}; trying again for {wait_s:g} s", file=sys.stderr)
            raise

    return with_retry(attempt, time.monotonic() + wait_s, final=(LockedOutError,))


def _pairs(texts: list[str]) -> dict[str, str]:
    for text in texts:
        if "=" not in text:
            raise typer.BadParameter(f"got {text!r}, expected NAME=VALUE", param_hint="--header")
    return dict(text.split("=", 1) for text in texts)


def _read_bytes(path: Path) -> bytes:
    from lasro.errors import ConfigError

    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error


def _json_object(text: str, option: str) -> dict[str, Any]:
    """`text` itself where it begins like an object, else the file of that name."""
    from lasro.errors import ConfigError

    inline = text.lstrip().startswith("{")
    try:
        value = json.loads(text if inline else _read_bytes(Path(text)))
    except ValueError as error:
        raise ConfigError(f"{option}: got what is not JSON ({error}), expected an object or a file with one") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{option}: got a JSON {type(value).__name__} in {text}, expected an object")
    return value
