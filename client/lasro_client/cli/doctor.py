"""`lasro doctor`: is everything here that LaSRO needs? Each check does the thing itself."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from lasro.errors import LasroError
from lasro_client.cli.doctor_model import examine_model
from lasro_client.cli.output import AsJson, print_json, print_table
from lasro_client.cli.train import Set

PACKAGES = ("torch", "diffusers", "transformers", "peft", "fastapi", "uvicorn", "redis", "httpx")
MIN_FREE_BYTES = 2 << 30


class Check(NamedTuple):
    """What one check found; `essential` ones decide the exit status."""

    name: str
    ok: bool
    essential: bool
    detail: str


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(help="`bundled`, a diffusers folder, a hub id, or one .safetensors file.", show_default=False),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML file of the run it is for.", show_default="default settings")
    ] = None,
    settings: Set = None,
    run: Annotated[bool, typer.Option(help="Take one step of each kind and say what it took.")] = True,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that the run is started with, for `model.shard`.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Check that everything LaSRO needs is here. With MODEL or --config: what a run needs of memory, time, calls, disk.

    Exit status 1 where something essential fails, the model is not supported, or there is too little memory.
    """
    if model is not None or config is not None:
        examine_model(model, config, settings or [], run, processes, as_json)
        return
    checks = diagnose()
    if as_json:
        print_json({"ok": all(c.ok for c in checks if c.essential), "checks": [c._asdict() for c in checks]})
    else:
        words = {(True, True): "ok", (True, False): "ok", (False, True): "FAILED", (False, False): "warning"}
        print_table(("check", "result", "detail"), [(c.name, words[c.ok, c.essential], c.detail) for c in checks])
    if not all(check.ok for check in checks if check.essential):
        raise typer.Exit(1)


def diagnose() -> list[Check]:
    """All checks, each of which survives the failure of the others."""
    return [
        _python(),
        *(_package(name) for name in PACKAGES),
        _checked("device", _device),
        _checked("redis", _redis),
        _checked("model", _model),
        _disk(),
    ]


def _checked(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, True, check())
    except (LasroError, ImportError, OSError, RuntimeError) as error:
        return Check(name, False, True, " ".join(str(error).split()))


def _python() -> Check:
    return Check("python", sys.version_info >= (3, 11), True, f"{platform.python_version()} on {platform.platform()}")


def _package(name: str) -> Check:
    from importlib.metadata import PackageNotFoundError, version  # loads the parser of e-mail

    try:
        return Check(name, True, True, version(name))
    except PackageNotFoundError:
        return Check(name, False, True, "not installed; pip install 'lasro[all]'")


def _device() -> str:
    import torch

    from lasro.models.device import pick_device

    device = pick_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
    return f"{device.type}, {name}, {torch.get_num_threads()} threads"


def _redis() -> str:
    from lasro.redis_store.connection import connect, redis_errors
    from lasro.redis_store.embedded import EmbeddedRedis, find_server
    from lasro.redis_store.server import check_server

    if url := os.environ.get("LASRO_REDIS_URL"):
        with connect(url) as client, redis_errors():
            info: Any = client.info("server")
            return "; ".join([f"LASRO_REDIS_URL answers, version {info['redis_version']}", *check_server(client)])
    with tempfile.TemporaryDirectory(prefix="lasro-") as folder, EmbeddedRedis(Path(folder)):
        return f"embedded server starts ({find_server().name})"


def _model() -> str:
    from lasro.config import ModelSettings
    from lasro.models.registry import load_model
    from lasro_client.evaluation.generate import draw

    model = load_model(ModelSettings())
    started = time.perf_counter()
    images_BHWC = draw(model, ["a red circle and a blue star on a white background"], [0], 2)
    elapsed_s = time.perf_counter() - started
    if images_BHWC.std() < 1:
        raise LasroError("the bundled model drew an empty image; reinstall lasro and torch")
    return f"bundled model draws in two steps in {elapsed_s:.2f} s"


def _disk() -> Check:
    free_bytes = shutil.disk_usage(".").free
    detail = f"{free_bytes / 2**30:.1f} GiB free here"
    return Check("disk", free_bytes >= MIN_FREE_BYTES, False, detail)
