"""The chaos run in small: faults come and everything goes on, and a mistake in the product is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SEED = 236
"""Whose first faults are those four."""
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="limits other processes' files"),
    pytest.mark.proof,
]


def chaos(model: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "tests.chaos", "--model", str(model), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_nothing_is_lost_doubled_or_falsified(tiny_model_path: Path) -> None:
    """Bug: any change that loses a sample when a worker dies, Redis' clock is set, a reward dies or a reply is lost."""
    arguments = ["--rounds", "4", "--per-round", "20", "--faults", "4", "--minutes", "4", "--seed", str(SEED)]
    status, line = chaos(tiny_model_path, *arguments)
    assert line["violations"] == []
    assert (line["lost"], line["duplicated"], line["wrong"], line["groups"]) == (0, 0, 0, 160)
    assert line["faults"] >= 4
    assert status == 0


def test_a_mistake_is_found(tiny_model_path: Path) -> None:
    """Bug: a check that finds nothing, whatever happens: here the trainer acknowledges what it has not kept yet."""
    arguments = ["--rounds", "6", "--per-round", "20", "--faults", "3", "--minutes", "4", "--patience", "1"]
    status, line = chaos(
        tiny_model_path, *arguments, "--only", "kill surrogate_trainer", "--break", "acknowledge-first"
    )
    assert line["lost"] > 0
    assert status == 1
