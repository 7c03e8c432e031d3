"""Runs: a folder with `config.json` is one; services may know more, under the name that the folder gives them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from lasro import wire
from lasro.errors import ConflictError, NotFoundError, StorageError
from lasro.folder_lock import hold_folder, holder, is_held
from lasro.redis_store.connection import connect
from lasro.redis_store.runs import delete_run as delete_keys
from lasro.redis_store.runs import run_names
from lasro_client.run.pause import pause_state, request_pause, resume_command, withdraw_pause
from lasro_client.run.round_record import read_log
from lasro_client.services import http

CONFIG, LOG, SUMMARY = "config.json", "log.jsonl", "summary.json"
GOES_ON, STOP_IT = "the run is going on", "stop it first"
ALIVE = ("running", "pausing", "paused")
"""States of a run that a process runs."""


class Run(NamedTuple):
    """`round` of `rounds` are done. `running` while a process runs it, `finished` with a summary, else `stopped`.

    One that is going on is `pausing` from when it was asked to pause, and `paused` once its round is done. One that
    only services know has no folder and is in the state `services`.
    """

    name: str
    state: str
    round: int
    rounds: int
    folder: str | None


def find_runs(root: Path, known_to_services: Iterable[str] = ()) -> list[Run]:
    """All runs directly inside `root`, by name, then such as only services know."""
    folders = [config.parent for config in sorted(root.glob(f"*/{CONFIG}"))]
    others = sorted(set(known_to_services) - {service_name(folder) for folder in folders})
    return [_read(folder) for folder in folders] + [Run(name, "services", 0, 0, None) for name in others]


def service_name(folder: Path) -> str:
    """The name under which services know the run of that folder; raises StorageError."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StorageError(f"{folder / CONFIG}: cannot be read ({error}); delete the folder by hand") from error
    name = str(config.get("name", folder.name))
    return f"{name}-pretrain" if config.get("stage") == "pretrain" else name


def names_at_services(redis_url: str | None, trainer_url: str | None, api_key: str | None) -> set[str]:
    """Of the runs that Redis and the surrogate trainer know, each where its URL is given."""
    names: set[str] = set()
    if redis_url:
        with connect(redis_url) as client:
            names.update(run_names(client))
    if trainer_url:
        with http.connect(trainer_url, api_key) as trainer:
            found = http.message(http.send(trainer, "GET", "/v1/runs"), wire.RunList)
            names.update(status.run for status in found.runs)
    return names


def delete_at_services(name: str, redis_url: str | None, trainer_url: str | None, api_key: str | None) -> None:
    """Remove a run with its weights and keys; harmless where it is not known."""
    if trainer_url:
        with http.connect(trainer_url, api_key) as trainer, suppress(NotFoundError):
            http.send(trainer, "DELETE", f"/v1/runs/{quote(name, safe='')}")
    if redis_url:  # last: the trainer would make its place on the stream again
        with connect(redis_url) as client:
            delete_keys(client, name)


def find_run(root: Path, name: str, known_to_services: Iterable[str] = ()) -> Run:
    """One run; raises NotFoundError. `name` is a folder name, never a path out of `root`, or one at the services."""
    if Path(name).name == name and (root / name / CONFIG).is_file():
        return _read(root / name)
    if name in known_to_services:
        return Run(name, "services", 0, 0, None)
    raise NotFoundError(f"{root / name}: no run there, expected a folder with {CONFIG}; see `lasro runs ls`")


def check_not_running(run: Run) -> None:
    """Raises ConflictError while it goes on, or its local stack still runs."""
    if run.state in ALIVE:
        raise ConflictError(f"{run.folder}: {GOES_ON}{holder(Path(run.folder or ''))}; {STOP_IT}")


def pause_run(run: Run) -> None:
    """Have it wait after the round under way; raises ConflictError where it does not run, or was asked already."""
    if run.state not in ALIVE:
        raise ConflictError(f"{run.name}: got a run that is {_described(run)}, expected one that is running to pause")
    folder = Path(run.folder or "")
    if run.state != "running":
        raise ConflictError(f"{folder}: the run is {run.state} already; {resume_command(folder)} has it go on")
    request_pause(folder)


def resume_run(run: Run) -> None:
    """Have a run that waits go on; raises ConflictError where none was asked to wait."""
    if run.state in ALIVE and run.state != "running":
        return withdraw_pause(Path(run.folder or ""))
    advice = "; `lasro train` or `pretrain` with its settings goes on with it" if run.state == "stopped" else ""
    raise ConflictError(f"{run.name}: got a run that is {_described(run)}, expected one that is paused{advice}")


def _described(run: Run) -> str:
    return "known to services alone" if run.folder is None else run.state


@contextmanager
def kept_from_starting(run: Run) -> Iterator[None]:
    """Nobody begins to run in its folder while inside; raises ConflictError where one has just begun."""
    with nullcontext() if run.folder is None else hold_folder(Path(run.folder), GOES_ON, STOP_IT):
        yield


def delete_folder(run: Run) -> None:
    """Delete its folder, where it has one; raises StorageError where files cannot be deleted."""
    if run.folder is None:
        return
    try:
        shutil.rmtree(run.folder)
    except OSError as error:
        raise StorageError(f"{run.folder}: cannot be deleted ({error.strerror})") from error


def _read(folder: Path) -> Run:
    records = read_log(folder / LOG)
    state = "finished" if (folder / SUMMARY).exists() else "stopped"
    if _is_running(folder):
        state = pause_state(folder) or "running"
    done, rounds = (records[-1].round + 1, records[-1].num_rounds) if records else (0, 0)
    return Run(folder.name, state, done, rounds, str(folder))


def _is_running(folder: Path) -> bool:
    """Whether a process runs it, or the embedded Redis of its local stack still holds its own lock."""
    return is_held(folder) or is_held(folder / "services")
