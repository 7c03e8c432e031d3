"""The pages that show how to extend LaSRO: their files and changes, made in a copy of the code, pass their own tests.

A python block begins with `# PATH` and is a new file; a diff block begins with `+++ PATH` and changes one that exists.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARENTS = ("", "client", "services/reward_api", "services/surrogate_trainer", "services/rewards")
COPIED = (
    "lasro",
    "client",
    "services",
    "pyproject.toml",
    "tests/conftest.py",
    "tests/services/conftest.py",
    "tests/support",
)
BLOCK = re.compile(r"^```(python|diff)\n(?:# |\+\+\+ )([\w./]+)\n(.*?)^```", re.M | re.S)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What the pages change, without the models."""
    ignored = shutil.ignore_patterns("assets", "__pycache__")
    for name in COPIED:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def change(path: Path, lines: list[str]) -> None:
    """Apply a diff that shows a place by its lines, which must be found once."""
    old = "\n".join(line[1:] for line in lines if not line.startswith("+"))
    new = "\n".join(line[1:] for line in lines if not line.startswith("-"))
    text = path.read_text(encoding="utf-8")
    assert text.count(f"{old}\n") == 1, f"{path}: got {text.count(old)} places like this, expected one:\n{old}"
    path.write_text(text.replace(f"{old}\n", f"{new}\n"), encoding="utf-8")


def follow(page: Path, folder: Path) -> list[str]:
    """Do in `folder` what a page says; returns the new files."""
    text, written = page.read_text(encoding="utf-8"), list[str]()
    found = BLOCK.findall(text)
    assert len(found) == len(re.findall(r"^```(?:python|diff)$", text, re.M)), f"{page}: a block does not name its file"
    for kind, name, body in found:
        path = folder / name
        if kind == "diff":
            change(path, body.splitlines())
        else:
            assert not path.exists(), f"{name}: got a file that is there already, expected a new one"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body, encoding="utf-8")
            written.append(name)
    return written


def python(*arguments: str, cwd: Path) -> str:
    """What Python prints with the packages of `cwd`, before those installed."""
    path = os.pathsep.join(str(cwd / parent) for parent in PARENTS)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("page", "modules", "passed"),
    [("add-a-reward-or-protocol.md", ("lasro_rewards.saturation", "lasro_reward_api.protocols.ratings"), 12)],
)
def test_a_page_can_be_followed(page: str, modules: tuple[str, ...], passed: int, copy: Path) -> None:
    """Bug: a newcomer follows a page to the letter, and gets something else than the page says."""
    written = follow(ROOT / "docs" / page, copy)
    tests = [name for name in written if name.startswith("tests/")]
    shown = python("-m", "pytest", "-p", "no:cacheprovider", "-n", "0", *tests, cwd=copy)
    assert f"{passed} passed" in shown
    imported = f"import {', '.join(modules)}; print({', '.join(f'{name}.__file__' for name in modules)}, sep='\\n')"
    assert all(Path(line).is_relative_to(copy) for line in python("-c", imported, cwd=copy).splitlines())
    python("-m", "ruff", "format", "--check", *written, cwd=copy)
    python("-m", "ruff", "check", *written, cwd=copy)
