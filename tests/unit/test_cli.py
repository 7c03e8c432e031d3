"""The command line without any service running."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

LASRO = [sys.executable, "-m", "lasro_client.cli.main"]
EVERY_HELP = str(Path(__file__).parents[1] / "support" / "every_help.py")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*LASRO, *arguments], capture_output=True, text=True, env={**os.environ, **environment})


HEAVY = {"torch", "diffusers", "transformers", "numpy", "PIL", "fastapi", "redis", "httpx", "jinja2"}
DRAWS_HELP = "import typer.main, typer.rich_utils, rich.markdown, rich.columns, rich.panel"
TIMES_AS_LONG, TRIES = 2.5, 5


def processor_s(*command: str) -> float:
    """Time on the processor: the clock on the wall would also count what other programs take."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_is_quick() -> None:
    """`lasro --help` loaded torch and took seconds, and pydantic and took twice as long. What is imported to draw any
    help is the yardstick on this machine; the best of some tries: caches may be cold, neighbours busy."""
    helps_s: list[float] = []
    draws_s: list[float] = []
    while len(helps_s) < TRIES and min(helps_s, default=1.0) >= TIMES_AS_LONG * min(draws_s, default=0.0):
        draws_s.append(processor_s(sys.executable, "-c", DRAWS_HELP))
        helps_s.append(processor_s(*LASRO, "--help"))
    assert min(helps_s) < TIMES_AS_LONG * min(draws_s)


def test_help_of_every_command_imports_nothing_heavy() -> None:
    """One command imported a table of names from the evaluation, and with it numpy for the help of all."""
    printed = subprocess.run([sys.executable, EVERY_HELP], capture_output=True, text=True, check=True).stdout
    result = json.loads(printed)
    assert HEAVY & set(result["modules"]) == set()
    for command in ("demo", "up", "worker", "train", "generate", "evaluate", "report", "export", "doctor"):
        assert f"lasro {command} " in result["helps"][command]
        assert f" {command} " in result["helps"][""]
    assert {"analyze diversity", "rewards audit", "surrogate score", "queue retry", "runs rm"} <= result["helps"].keys()


@pytest.mark.parametrize(
    "arguments",
    [
        ("train",),
        ("generate", "--prompts", "p.txt", "--out", "o", "--steps", "9"),
        ("rewards", "ls"),
        ("rewards", "add", "name", "http://127.0.0.1:1/", "--reward-api", "http://127.0.0.1:1", "--header", "novalue"),
        ("no-such-command",),
    ],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    """Wrong usage ended with 0, 1 or a traceback."""
    result = run(*arguments, LASRO_REWARD_API_URL="")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("train", "missing.toml"), "missing.toml: no such configuration file"),
        (("generate", "--prompts", "missing.txt", "--out", "o"), "missing.txt: no such prompt file"),
        (("rewards", "ls", "--reward-api", "http://127.0.0.1:1"), "http://127.0.0.1:1 cannot be reached"),
        (("rewards", "ls", "--reward-api", "127.0.0.1:1"), "expected http://HOST:PORT"),
        (("rewards", "ls", "--reward-api", "http://[::1"), "expected http://HOST:PORT"),
        (("queue", "ls", "--redis", "redis://127.0.0.1:1"), "Redis cannot be reached"),
        (("queue", "ls", "--redis", "127.0.0.1:1"), "LASRO_REDIS_URL: "),
        (("worker", "--redis", "127.0.0.1:1"), "LASRO_REDIS_URL: "),
        (("surrogate", "score", "r", "no.png", "--prompt", "a", "--surrogate-trainer", "http://[::1]:1"), "no.png"),
        (("runs", "rm", "../elsewhere", "--yes"), "no run there"),
    ],
)
def test_errors_are_one_line_and_1(tmp_path: Path, arguments: tuple[str, ...], part: str) -> None:
    """A foreseen error ended in a traceback, in exit status 0, or on stdout where scripts read results."""
    result = subprocess.run([*LASRO, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1
    assert part in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("package", "arguments"),
    [
        ("torch", ("demo",)),
        ("fastapi", ("rewards", "serve", "module:function")),
        ("uvicorn", ("rewards", "bridge", "http://127.0.0.1:1")),
    ],
)
def test_an_extra_that_is_not_installed_is_named(tmp_path: Path, package: str, arguments: tuple[str, ...]) -> None:
    """`pip install lasro` without extras, and then `lasro demo` or `lasro rewards serve`, ended in a traceback."""
    code = f"import sys; sys.modules['{package}'] = None; from lasro_client.cli.main import main; main()"
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr == f"lasro: got no package {package}, expected it here; pip install 'lasro[all]'\n"


def test_unknown_settings_name_the_key(tmp_path: Path) -> None:
    """A misspelt key in the configuration was ignored."""
    config = tmp_path / "run.toml"
    config.write_text('name = "x"\nrewards = [{name = "r"}]\nprompts = {train = "a", held_out = "b"}\nrouns = 3\n')
    result = run("train", str(config))
    assert result.returncode == 1
    assert "rouns: no such setting; expected one of budget, evaluation, health" in result.stderr


def test_runs_are_listed_and_removed(tmp_path: Path) -> None:
    """A half-written log line hid a run; `rm` deleted something that is no run."""
    run_folder = tmp_path / "runs" / "one"
    run_folder.mkdir(parents=True)
    (run_folder / "config.json").write_text("{}")
    (run_folder / "log.jsonl").write_text('{"stage": "train", "round": 3, "rounds": 9}\n{"stage": "train", "ro')
    other = tmp_path / "runs" / "notes"
    other.mkdir()
    root = ("--root", str(tmp_path / "runs"))
    listed = json.loads(run("runs", "ls", *root, "--json").stdout)
    expected = {"name": "one", "state": "stopped", "round": 4, "rounds": 9, "folder": str(run_folder)}
    assert listed == {"runs": [expected]}
    assert run("runs", "rm", "notes", "--yes", *root).returncode == 1
    assert run("runs", "rm", "one", *root).returncode == 1  # nobody there to confirm
    assert run_folder.exists()
    assert json.loads(run("runs", "rm", "one", "--yes", "--json", *root).stdout) == {
        "removed": "one",
        "from": [str(run_folder)],
    }
    assert not run_folder.exists()
    assert other.exists()
