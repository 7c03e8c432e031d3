"""Children that die: when they are started again, and when not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lasro.errors import UnreachableError
from lasro_client.services import supervisor as module
from lasro_client.services.supervisor import QUICK_DEATHS, Child, Supervisor


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setattr(module, "LONGEST_BACKOFF_S", 0.02)


@pytest.fixture
def watched() -> Iterator[Supervisor]:
    supervisor = Supervisor()
    yield supervisor
    supervisor.stop()


def child(tmp_path: Path, code: str) -> Child:
    def spawn() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-S", "-c", code], start_new_session=True)

    return Child("victim", spawn, tmp_path / "no.log")


def wait_until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_killed_is_started_again_however_often(watched: Supervisor, tmp_path: Path) -> None:
    """Bug: after the fifth kill within minutes the whole stack gives up, though each life worked."""
    victim = child(tmp_path, "import time; time.sleep(60)")
    watched.watch([victim])
    watched.started()
    for _ in range(QUICK_DEATHS + 2):
        wait_until(lambda: victim.process is not None and victim.process.poll() is None)
        process = victim.process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda dead=process: victim.process not in (None, dead))
    watched.check()


@pytest.mark.parametrize(("code", "has_started"), [("raise SystemExit(3)", True), ("import os; os.abort()", False)])
def test_what_ends_by_itself_is_given_up(watched: Supervisor, tmp_path: Path, code: str, has_started: bool) -> None:
    """Bug: a service that cannot start is started for ever, and nobody is told."""
    watched.watch([child(tmp_path, code)])
    if has_started:
        watched.started()

    def has_failed() -> bool:
        try:
            watched.check()
        except UnreachableError:
            return True
        return False

    wait_until(has_failed)
    with pytest.raises(UnreachableError, match="victim: died 5 times in a row"):
        watched.check()
