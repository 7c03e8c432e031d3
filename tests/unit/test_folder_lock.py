"""One process at a time in a folder."""

from __future__ import annotations

import errno
import fcntl
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lasro.config import RunSettings
from lasro.errors import ConfigError, ConflictError
from lasro.folder_lock import hold_folder, is_held
from lasro_client.cli.main import app
from lasro_client.run.stage1 import pretrain
from lasro_client.run.stage2 import train

HOLD = """
import sys, time
from pathlib import Path
from lasro.folder_lock import hold_folder
with hold_folder(Path(sys.argv[1]), "in use", "wait"):
    print("held", flush=True)
    time.sleep(60)
"""
COMMAND = """
import sys
from lasro_client.cli.main import main
try:
    main()
finally:
    print("torch" in sys.modules)
"""
CONFIG = RunSettings.model_validate(
    {"name": "run", "prompts": {"train": "none.txt", "held_out": "none.txt"}, "rewards": [{"name": "any"}]}
)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("stage", [train, pretrain])
def test_a_second_run_is_refused_at_once_until_the_first_is_dead(
    other: subprocess.Popen[str], tmp_path: Path, stage: Callable[[RunSettings, Path], object]
) -> None:
    """Bug: it failed after 81 s with advice that ends the first run; and the opposite, a run that was killed and can
    not go on before somebody deletes a file."""
    folder, started = tmp_path / "run", time.monotonic()
    with pytest.raises(ConflictError) as caught:
        stage(CONFIG, folder)
    assert time.monotonic() - started < 5
    message = str(caught.value)
    assert message.startswith(f"{folder}: a run goes on in this folder (process {other.pid} on {socket.gethostname()}")
    assert " since 20" in message
    assert is_held(folder)
    other.kill()
    other.wait()
    assert not is_held(folder)
    with pytest.raises(ConfigError, match=r"none\.txt: no such prompt file"):
        stage(CONFIG, folder)
    assert not is_held(folder), "a run that failed lets go"


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_a_second_command_is_refused_before_torch_is_imported(
    other: subprocess.Popen[str], tmp_path: Path, command: str
) -> None:
    """Bug: on a busy machine it took 11 s to be refused, all of them for imports."""
    config = tmp_path / "run.toml"
    config.write_text('name = "run"\nprompts = {train = "a", held_out = "b"}\nrewards = [{name = "any"}]\n')
    arguments = [sys.executable, "-c", COMMAND, command, str(config), "--out", str(tmp_path / "run")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "False\n")
    assert f"a run goes on in this folder (process {other.pid} on " in done.stderr


def test_a_run_that_goes_on_is_not_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bug: with services of its own elsewhere, the folder of a run vanished under it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text('{"name": "run"}')
    remove = ["runs", "rm", "run", "--root", str(tmp_path), "--yes"]
    with hold_folder(folder, "in use", "wait"):
        with pytest.raises(ConflictError, match=r"run: the run is going on \(process "):
            app(remove, standalone_mode=False)
        app(["runs", "ls", "--root", str(tmp_path), "--json"], standalone_mode=False)
        assert '"state": "running"' in capsys.readouterr().out
    app(remove, standalone_mode=False)
    assert not folder.exists()


def test_a_file_system_without_locks_is_said_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Bug: on a network mount without locks nothing runs at all, for a traceback."""

    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    with caplog.at_level(logging.WARNING), hold_folder(tmp_path, "in use", "wait"):
        pass
    assert "No locks available on this file system" in caplog.text
