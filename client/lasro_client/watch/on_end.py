"""`tracking.on_end`: a command that hears how a run ended. It cannot change that, nor the exit status."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lasro.service.child_process import last_log_line
from lasro_client.run.observer import Observer, RunInfo
from lasro_client.run.stopped import SIGNALS, STOPPED_FILE

LONGEST_S = 60.0


class OnEnd(Observer):
    """Calls `command` when a run is finished, stopped or failed; `say` takes a line for the user where that fails."""

    def __init__(self, command: Sequence[str], say: Callable[[str], None], longest_s: float = LONGEST_S) -> None:
        self._command, self._say, self._longest_s = command, say, longest_s
        self._run: RunInfo | None = None
        self._stopped_ns: int | None = None
        """When an earlier life of the run said why it stopped."""

    def run_started(self, run: RunInfo) -> None:
        self._run, self._stopped_ns = run, _changed_ns(run.folder / STOPPED_FILE)

    def run_ended(self) -> None:
        assert self._run is not None, "run_started() comes first"
        if self._stopped_ns is not None and _changed_ns(self._run.folder / STOPPED_FILE) == self._stopped_ns:
            return  # another observer could not start, so that the run did not either
        if problem := call(self._command, how_it_ended(self._run), self._longest_s):
            self._say(f"tracking.on_end: {self._command[0]} {problem}")


def how_it_ended(run: RunInfo) -> dict[str, str]:
    """The variables that the command gets. LASRO_STATUS: finished, stopped (by Ctrl-C or SIGTERM) or failed;
    LASRO_REASON: why it ended early, empty where it did not; LASRO_SUMMARY: path of its summary.json, empty without."""
    summary, stopped = run.folder / "summary.json", run.folder / STOPPED_FILE
    if stopped.exists():
        reason = str(json.loads(stopped.read_bytes())["reason"])
        status = "stopped" if reason in SIGNALS.values() else "failed"
    elif summary.exists():
        reason = json.loads(summary.read_bytes()).get("ended") or ""
        status = "finished"
    else:
        status, reason = "failed", ""
    return {
        "LASRO_RUN": run.name,
        "LASRO_STATUS": status,
        "LASRO_REASON": reason,
        "LASRO_FOLDER": str(run.folder.resolve()),
        "LASRO_SUMMARY": str(summary.resolve()) if status == "finished" else "",
    }


def _changed_ns(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def call(command: Sequence[str], variables: Mapping[str, str], longest_s: float) -> str | None:
    """Run it without a shell and wait; returns what went wrong, in a few words. It is killed after `longest_s`.

    In a session of its own, so that a Ctrl-C in the terminal does not reach it.
    """
    with tempfile.TemporaryDirectory(prefix="lasro-") as folder:
        log_path = Path(folder) / "output"
        try:
            with log_path.open("wb") as output:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **variables},
                    start_new_session=True,
                )
        except OSError as error:
            return f"cannot be called ({error.strerror})"
        try:
            status = process.wait(longest_s)
        except subprocess.TimeoutExpired:
            return f"was killed after {longest_s:g} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return None if status == 0 else f"ended with status {status}: {last_log_line(log_path)}"
