"""The notebook in examples/: its code runs, and its outputs are fit to be read by others."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

NOTEBOOK = Path(__file__).parents[2] / "examples" / "training_loop.ipynb"
MAX_BYTES = 400_000
SWITCH = "SMALL = False"


def code_cells() -> list[dict[str, Any]]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.proof
def test_its_code_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against an example that no longer runs: its cells in order, with the switch at the top turned on."""
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")  # the notebook sets it: this takes it back
    code = ["".join(cell["source"]) for cell in code_cells()]
    assert code[0].startswith(SWITCH)
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, source in enumerate([code[0].replace(SWITCH, "SMALL = True"), *code[1:]]):
        exec(compile(source, f"code cell {number}", "exec"), names)
    before, after = (np.asarray(names[f"strip_{when}"], dtype=float) for when in ("before", "after"))
    assert isinstance(names["strip_after"], Image.Image)
    assert before.shape == after.shape
    assert not np.array_equal(before, after), "no update reached the generator"
    assert "redness over the base's" in capsys.readouterr().out


def test_its_outputs_are_those_of_its_cells() -> None:
    """Guards against a notebook committed without its pictures, half executed, or with an error in it."""
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "execute_result"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2


def test_it_says_nothing_of_the_machine_it_ran_on() -> None:
    """Guards against paths, names and times of whoever ran it, and a file too large to read in a browser."""
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < MAX_BYTES
    assert set(json.loads(text)["metadata"]) == {"kernelspec", "language_info"}
    assert all(cell["metadata"] == {} for cell in json.loads(text)["cells"])
    without_images = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not re.search(r'(?<![\w.])/(?:home|tmp|work|root|usr|Users)\b|\.venv|site-packages|"stderr"', without_images)
