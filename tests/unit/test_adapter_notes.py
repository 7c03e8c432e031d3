"""What an adapter's file says of how it is sampled, and the commands that go by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_trainer import trainer_of
from typer.testing import CliRunner

from lasro.errors import ModelError
from lasro.models.adapter_file import ADAPTER_FILE
from lasro.models.adapter_notes import STEPS_METADATA, note, noted_steps
from lasro_client.cli.main import app
from lasro_client.evaluation.adapted_model import steps_to_draw


def adapter_of(model: Path, folder: Path, steps: tuple[int, ...]) -> Path:
    trainer = trainer_of(model, steps=steps)
    trainer.average = [parameter.detach().clone() for parameter in trainer.parameters]
    return trainer.save(folder).parent


@pytest.fixture(scope="module")
def of_three(one_level_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that was trained in three steps alone."""
    return adapter_of(one_level_model_path, tmp_path_factory.mktemp("three"), (3,))


def test_a_run_notes_its_steps(of_three: Path, one_level_model_path: Path, tmp_path: Path) -> None:
    """Bug: an adapter's file did not say in how many steps it was trained, and an exported one would forget it."""
    assert noted_steps(of_three) == (3,)
    assert noted_steps(adapter_of(one_level_model_path, tmp_path / "default", (1, 2))) == (1, 2)
    out = tmp_path / "exported"
    options = ["--model", str(one_level_model_path), "--out", str(out), "--format", "peft"]
    assert CliRunner().invoke(app, ["export", str(of_three), *options], catch_exceptions=False).exit_code == 0
    assert noted_steps(out) == (3,)
    assert "num_inference_steps=3" in (out / "README.md").read_text()


def test_steps_that_are_asked_for(of_three: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bug: eight steps of a two-step adapter were drawn without a word. A note that is no list of steps counts as none,
    and a broken file is one line."""
    assert steps_to_draw(None, None) == (1, 2)
    assert steps_to_draw(None, (8,)) == (8,)
    assert steps_to_draw(of_three, None) == steps_to_draw(of_three, (3,)) == (3,)
    assert not caplog.records
    assert steps_to_draw(of_three, (1, 3, 8)) == (1, 3, 8)
    (record,) = caplog.records
    assert record.message == (
        f"{of_three}: was trained to be sampled in 3 steps, and is now in 1 and 8; for what it has learned leave "
        "--steps out"
    )
    file = tmp_path / ADAPTER_FILE
    file.write_bytes((of_three / ADAPTER_FILE).read_bytes())
    note(file, STEPS_METADATA, "as many as you like")
    assert steps_to_draw(file, None) == (1, 2)
    file.write_bytes(b"no tensors at all")
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        steps_to_draw(file, None)


def test_generate_draws_in_the_steps_of_the_adapter(of_three: Path, one_level_model_path: Path, tmp_path: Path) -> None:
    """Guards against a default that holds for another adapter."""
    (tmp_path / "p.txt").write_text("a red star")
    common = ["generate", "--prompts", str(tmp_path / "p.txt"), "--model", str(one_level_model_path), "--device", "cpu"]
    found = []
    for name, options in {"plain": [], "own": ["--adapter", str(of_three)], "asked": ["--steps", "5"]}.items():
        out = tmp_path / name
        assert CliRunner().invoke(app, [*common, "--out", str(out), *options], catch_exceptions=False).exit_code == 0
        found.append(json.loads((out / "index.json").read_text())["images"][0]["steps"])
    assert found == [2, 3, 5]
