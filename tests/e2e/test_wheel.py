"""The wheel, installed where nothing of the checkout can be found: what is in it, and that its commands work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
EVERY_HELP = ROOT / "tests" / "support" / "every_help.py"
UNWANTED = re.compile(
    r"(^|/)(tests?|test_\w+\.py|conftest\.py|benchmarks?|recipes|deploy|runs|__pycache__|\.[^/]+"
    r"|id_[a-z0-9]+|[^/]*(secret|password|credential)[^/]*|[^/]*\.(pem|key|p12|pfx|crt|pyc|log|env|ipynb))(/|$)"
)
PRIVATE_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")
SMALLEST_DEMO = ("train.rounds=1", "train.carried_groups=4", "evaluation.prompts=2", "evaluation.drift_prompts=2")


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Output of a command that succeeds, run without the checkout on its path."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the checkout with the hatchling of this environment: build isolation would need the network."""
    folder = tmp_path_factory.mktemp("wheel")
    build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    """The files in it, without those about it."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a new environment with the wheel, which borrows all other packages from this one.

    It does so by a .pth file: those in a folder so added are not read, so an editable install there does not count.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.EnvBuilder(symlinks=os.name != "nt").create(folder)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    options = ("--no-deps", "--no-index", "--no-compile", "--quiet", "--disable-pip-version-check")
    pip = (sys.executable, "-m", "pip", "--python", scripts / "python", "install", *options)
    run(*pip, wheel, cwd=folder)
    (packages,) = {path.parent for path in folder.rglob("lasro_client")}
    borrowed = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    (packages / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n", encoding="utf-8")
    return scripts


def files(folder: Path) -> set[str]:
    """Paths below a folder of the checkout; what Python leaves there is no part of it."""
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in found}


def test_everything_of_the_packages_is_in_the_wheel_and_nothing_else(names: set[str]) -> None:
    """Bug: a script, template, asset or prompt file was in the checkout alone, or a new package was left out."""
    folders = {Path(path).name: ROOT / path for path in WHEEL["packages"]}
    folders |= {target: ROOT / source for source, target in WHEEL["force-include"].items()}
    assert names == {f"{target}/{name}" for target, folder in folders.items() for name in files(folder)}
    sources = [ROOT / "lasro", *ROOT.glob("client/lasro*"), *ROOT.glob("services/*/lasro*")]
    assert {name.split("/")[0] for name in names} == {path.name for path in sources if (path / "__init__.py").exists()}
    assert {".lua", ".jinja", ".css", ".toml", ".txt", ".jsonl", ".xz", ".safetensors"} <= {
        Path(n).suffix for n in names
    }


def test_no_test_benchmark_or_secret_is_in_the_wheel(wheel: Path, names: set[str]) -> None:
    """Bug: a key or a test that lay in a package's folder when the release was built was published."""
    assert UNWANTED.search("lasro/.env")
    assert UNWANTED.search("lasro/tests/data.json")
    assert UNWANTED.search("lasro/server.pem")
    assert {name for name in names if UNWANTED.search(name)} == set()
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in names if PRIVATE_KEY.search(archive.read(name))} == set()


def test_every_command_helps_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """Bug: a command needed a file of the checkout, or the checkout's packages hid what the wheel lacks."""
    result = json.loads(run(installed / "python", EVERY_HELP, cwd=tmp_path))
    assert Path(result["file"]).is_relative_to(installed.parent)
    assert not {str((ROOT / path).parent) for path in WHEEL["packages"]} & set(result["path"])
    assert {"", "demo", "train", "rewards audit", "queue ls"} <= result["helps"].keys()
    assert all("Usage: lasro" in text for text in result["helps"].values())
    assert run(installed / "lasro", "--version", cwd=tmp_path).strip() == PROJECT["project"]["version"]
    assert list(tmp_path.iterdir()) == []


def test_shipped_configurations_load_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """Bug: a configuration in the wheel named a prompt or rewards file that the wheel lacks."""
    code = (
        "from pathlib import Path\n"
        "from lasro.config import load_config\n"
        "from lasro.training.prompts import read_prompts\n"
        "from lasro_client.cli.train import shipped_config\n"
        "for path in sorted(shipped_config('demo').parent.glob('*.toml')):\n"
        "    run = load_config(path)\n"
        "    for prompts in (run.prompts.train, run.prompts.held_out, run.prompts.drift):\n"
        "        if not isinstance(prompts, Path): continue  # none, or a data set of the hub\n"
        "        assert read_prompts(prompts)\n"
        "    labels = run.train.initial_base_rewards\n"
        "    assert labels is None or Path(labels).is_file() or path.stem != 'demo', labels\n"
        "    print(path)\n"
    )
    shown = run(installed / "python", "-c", code, cwd=tmp_path).splitlines()
    assert {Path(path).name for path in shown} == {path.name for path in (ROOT / "configs").glob("*.toml")}
    assert all(Path(path).is_relative_to(installed.parent) for path in shown)


@pytest.mark.proof
@pytest.mark.timeout(1200)
def test_the_demo_runs_from_the_wheel_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """Bug: only the checkout was tried: services, scripts, weights or the template were not found elsewhere."""
    settings = [part for setting in SMALLEST_DEMO for part in ("--set", setting)]
    summary = json.loads(run(installed / "lasro", "demo", *settings, "--json", cwd=tmp_path))
    folder = tmp_path / "runs" / "demo"
    assert summary == json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["rounds"] == 1
    for steps in ("one_step", "two_step"):
        row = summary["rewards"]["attribute-binding"][steps]
        assert (row["n"], row["failed"]) == (2, 0)
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
    assert list((folder / "adapter").glob("*.safetensors"))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
