"""A pause from another terminal: what the commands take, and what a run does until it may go on."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lasro.errors import ConflictError
from lasro.folder_lock import hold_folder
from lasro.training.distributed import DistributedContext
from lasro_client.cli.main import app
from lasro_client.run.observer import Observer
from lasro_client.run.pause import Pause, pause_files, pause_state, request_pause
from lasro_client.run.stop_signal import StopRequest
from lasro_client.run.time_budget import TimeBudget


class Terminals:
    """Of a run in `root`/one: commands that are called beside it."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.folder, self._capsys = root, root / "one", capsys
        self.folder.mkdir()
        (self.folder / "config.json").write_text("{}")

    def runs(self, *arguments: str) -> Any:
        app(["runs", *arguments, "--root", str(self.root), "--json"], standalone_mode=False)
        return json.loads(self._capsys.readouterr().out)

    @property
    def state(self) -> str:
        return self.runs("ls")["runs"][0]["state"]


@pytest.fixture
def beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Terminals:
    return Terminals(tmp_path, capsys)


class Paused(Observer):
    """Keeps what is shown; calls `then` once the run says that it waits."""

    def __init__(self, then: Callable[[], object]) -> None:
        self.shown: list[str | None] = []
        self._then = then

    def activity(self, text: str | None, left_s: float | None = None) -> None:
        self.shown.append(text)
        if text is not None:
            threading.Timer(0.3, self._then).start()


def hold(folder: Path, observer: Observer, keep: Callable[[], None] = lambda: None) -> tuple[TimeBudget, StopRequest]:
    """A run in that folder comes to the end of a round."""
    peers, stop = DistributedContext(), StopRequest()
    clock = TimeBudget(1.0, 5.0, peers)
    with hold_folder(folder, "in use", "wait"), pause_files(folder), stop:
        request_pause(folder)
        Pause(folder, clock, peers, observer).obey(stop, keep)
    return clock, stop


def test_a_run_waits_until_it_is_resumed_and_its_time_stands_still(beside: Terminals) -> None:
    """Guards against minutes that a pause uses up, and against a run that is listed as running while it waits."""
    seen: list[str] = []

    def resume() -> None:
        seen.append(beside.state)
        time.sleep(0.5)
        beside.runs("resume", "one")

    observer = Paused(resume)
    kept: list[str | None] = []
    clock, stop = hold(beside.folder, observer, lambda: kept.append(pause_state(beside.folder)))
    assert seen == ["paused"]
    assert kept == ["pausing"], "what is done is kept before it waits"
    assert observer.shown == [f"paused; lasro runs resume one --root {beside.root} goes on", None]
    assert clock.paused_s > 0.7
    assert clock.elapsed_s < 5.5
    assert not stop.asked
    assert sorted(path.name for path in beside.folder.iterdir()) == ["config.json", "lock"]


def test_a_signal_ends_a_pause(beside: Terminals) -> None:
    """Guards against a paused run that only kill -9 ends, and whose next start waits again."""
    _, stop = hold(beside.folder, Paused(lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert stop.asked
    assert pause_state(beside.folder) is None


def test_what_is_not_asked_for_costs_nothing(beside: Terminals) -> None:
    """Guards against a run that waits for nobody: a pause of an earlier life that was killed is over."""
    request_pause(beside.folder)
    shown = Paused(lambda: None)
    with pause_files(beside.folder):
        Pause(beside.folder, TimeBudget(None, 0.0, DistributedContext()), DistributedContext(), shown).obey(
            StopRequest(), pytest.fail
        )
    assert shown.shown == []


def test_only_what_makes_sense_is_paused_and_resumed(beside: Terminals) -> None:
    """Guards against a request that nobody hears, and is obeyed when the run is started next."""
    stopped = r"^one: got a run that is stopped, expected one that is "
    with pytest.raises(ConflictError, match=stopped + "running to pause$"):
        beside.runs("pause", "one")
    with pytest.raises(ConflictError, match=stopped + "paused; `lasro train` or `pretrain` with its settings"):
        beside.runs("resume", "one")
    with ExitStack() as running:
        running.enter_context(hold_folder(beside.folder, "in use", "wait"))
        with pytest.raises(ConflictError, match=r"got a run that is running, expected one that is paused$"):
            beside.runs("resume", "one")
        assert beside.runs("pause", "one") == {"pausing": "one"}
        assert beside.state == "pausing"
        with pytest.raises(ConflictError, match="the run is pausing already; lasro runs resume one --root "):
            beside.runs("pause", "one")
        with pytest.raises(ConflictError, match="the run is going on"):
            beside.runs("rm", "one", "--yes")
        assert beside.runs("resume", "one") == {"resumed": "one"}
        assert beside.state == "running"
    (beside.folder / "summary.json").write_text("{}")
    with pytest.raises(ConflictError, match="got a run that is finished, expected one that is running to pause"):
        beside.runs("pause", "one")
