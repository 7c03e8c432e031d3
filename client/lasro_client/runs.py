"""Run folders on disk: a folder with `config.json` is a run."""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from lasro.errors import ConflictError, NotFoundError, StorageError

CONFIG, LOG, SUMMARY = "config.json", "log.jsonl", "summary.json"


class Run(NamedTuple):
    """`round` of `rounds` are done. `running` while its local stack runs, `finished` with a summary, else `stopped`."""

    name: str
    state: str
    round: int
    rounds: int
    folder: str


def find_runs(root: Path) -> list[Run]:
    """All runs directly inside `root`, by name; none where there is no such folder."""
    return [_read(config.parent) for config in sorted(root.glob(f"*/{CONFIG}"))]


def find_run(root: Path, name: str) -> Run:
    """One run; raises NotFoundError. `name` is a folder name, never a path out of `root`."""
    if Path(name).name != name or not (root / name / CONFIG).is_file():
        raise NotFoundError(f"{root / name}: no run there, expected a folder with {CONFIG}; see `lasro runs ls`")
    return _read(root / name)


def delete_run(run: Run) -> None:
    """Delete its folder; raises ConflictError while it runs, StorageError where files cannot be deleted."""
    if run.state == "running":
        raise ConflictError(f"{run.folder}: the run is going on; stop it first")
    try:
        shutil.rmtree(run.folder)
    except OSError as error:
        raise StorageError(f"{run.folder}: cannot be deleted ({error.strerror})") from error


def _read(folder: Path) -> Run:
    last = _last_round(folder / LOG)
    state = "finished" if (folder / SUMMARY).exists() else "stopped"
    if _is_running(folder):
        state = "running"
    done = int(last["round"]) + 1 if "round" in last else 0
    return Run(folder.name, state, done, int(last.get("rounds", 0)), str(folder))


def _last_round(log: Path) -> dict[str, Any]:
    """The last whole line of the log; a killed run may have left half a line behind it."""
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            return entry
    return {}


def _is_running(folder: Path) -> bool:
    """Whether the embedded Redis of its local stack holds its lock."""
    lock = folder / "services" / "lock"
    if not lock.exists():
        return False
    with lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
