"""A pause that somebody asks for from another terminal: `lasro runs pause NAME`, and `resume`. Imports no torch.

Two files in the run's folder, so that neither side undoes what the other wrote: the commands write and delete
`pause-requested`, the run alone `paused`. Both are gone when a run begins to work in its folder, and when it ends.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lasro.files import storage_errors
from lasro_client.run.observer import Observer
from lasro_client.run.stop_signal import StopRequest
from lasro_client.run.time_budget import TimeBudget

if TYPE_CHECKING:
    from lasro.training.distributed import DistributedContext

REQUEST_FILE, PAUSED_FILE = "pause-requested", "paused"
POLL_S = 0.5
DEFAULT_ROOT = Path("runs")


def request_pause(folder: Path) -> None:
    """Have the run in that folder pause after its round. Raises StorageError."""
    _make(folder / REQUEST_FILE)


def withdraw_pause(folder: Path) -> None:
    """Have it go on. Raises StorageError."""
    _remove(folder / REQUEST_FILE)


def pause_state(folder: Path) -> Literal["paused", "pausing"] | None:
    """Of a run that is going on: paused, about to be, or neither."""
    if not (folder / REQUEST_FILE).exists():
        return None
    return "paused" if (folder / PAUSED_FILE).exists() else "pausing"


@contextmanager
def pause_files(folder: Path) -> Iterator[None]:
    """No such file when a run begins to work in the folder, nor after it: one that was killed may have left some."""
    _forget(folder)
    try:
        yield
    finally:
        _forget(folder)


class Pause:
    """Of one run. Of several processes the main one sees the files, and all of them wait."""

    def __init__(self, folder: Path, clock: TimeBudget, peers: DistributedContext, observer: Observer) -> None:
        self._folder, self._clock, self._peers, self._observer = folder, clock, peers, observer

    def obey(self, stop: StopRequest, keep: Callable[[], None] = lambda: None) -> None:
        """Where there is a request, `keep` what is done and return once it is withdrawn, or a signal came.

        All processes call it. The time budget stands still meanwhile.
        """
        if not self._is_requested():
            return
        keep()
        if self._peers.is_main:
            _make(self._folder / PAUSED_FILE)
        self._observer.activity(f"paused; {resume_command(self._folder)} goes on")
        with self._clock.standing_still():
            # Exchanges have a time limit among several processes, so that these wait by many short ones.
            while self._is_requested():
                stop.agree(self._peers)
                if stop.asked:
                    break
                time.sleep(POLL_S)
        self._observer.activity(None)
        if self._peers.is_main:
            _remove(self._folder / PAUSED_FILE)

    def _is_requested(self) -> bool:
        return self._peers.on_main_and_broadcast((self._folder / REQUEST_FILE).exists, bool)


def resume_command(folder: Path) -> str:
    """By which a paused run goes on."""
    root = [] if folder.parent == DEFAULT_ROOT else ["--root", str(folder.parent)]
    return shlex.join(["lasro", "runs", "resume", folder.name, *root])


def _forget(folder: Path) -> None:
    for name in (REQUEST_FILE, PAUSED_FILE):
        _remove(folder / name)


def _make(path: Path) -> None:
    with storage_errors(path):
        path.touch()


def _remove(path: Path) -> None:
    with storage_errors(path):
        path.unlink(missing_ok=True)
