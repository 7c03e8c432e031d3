"""`lasro runs show`: a run in short, to paste."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from finished_run import write_finished_run

from lasro.config import RunSettings
from lasro_client.cli.main import app
from lasro_client.run.folder import RunFolder
from lasro_client.run.kept_settings import own_settings
from lasro_client.run.round_record import RewardRecord, RoundRecord
from lasro_client.run.versions import installed_versions

HOME = "/home/somebody/secret-project"


def show(capsys: pytest.CaptureFixture[str], folder: Path, *more: str) -> str:
    app(["runs", "show", folder.name, "--root", str(folder.parent), *more], standalone_mode=False)
    return capsys.readouterr().out


def begun(folder: Path, **changes: Any) -> RunFolder:
    prompts = {"train": f"{HOME}/train.txt", "held_out": f"{HOME}/held-out.txt"}
    settings = {"name": "short", "seed": 7, "prompts": prompts, "rewards": [{"name": "r", "weight": 2.0}]} | changes
    run = RunFolder(folder, RunSettings.model_validate(settings), "train")
    folder.mkdir(parents=True)
    run.open()
    return run


def test_a_finished_run_says_what_it_gained_and_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a gain without its standard error, and a mean over one and two steps."""
    folder = write_finished_run(tmp_path / "run", tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    more = {"reward_calls": 1200, "duration_s": 90.0, "ended": None, "versions": {"lasro": "1.2.3", "torch": "9"}}
    (folder / "summary.json").write_text(json.dumps(summary | more))
    text = show(capsys, folder)
    assert text.startswith("**sharp**: finished, 0 of 0 rounds, seed 3\n")
    assert "| sharpness | two steps | 0.250 ± 0.076 | 0.500 ± 0.076 | +0.250 ± 0.000 | 6 |\n" in text
    assert "- drift in changes of prompt, held-out prompts: one step 0.31 ± 0.02, two steps 0.31 ± 0.02\n" in text
    assert "- cost: 1,200 reward calls in rounds, 1.5 minutes\n" in text
    assert "- versions: lasro 1.2.3, torch 9\n" in text
    assert "ended early" not in text


def test_own_settings_are_toml_that_makes_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against settings that cannot be copied, defaults among them, and the paths of somebody's machine."""
    changes = {"train": {"drift_budget": "none", "timesteps": [999, 299], "rounds": 20}, "model": {"guidance": 2.0}}
    begun(tmp_path / "run", **changes)
    text = show(capsys, tmp_path / "run")
    assert HOME not in text
    lines = text.partition("```toml\n")[2].partition("```")[0]
    shown = tomllib.loads(lines)
    own = {"name": "short", "seed": 7, "prompts": {"train": "train.txt", "held_out": "held-out.txt"}}
    assert shown == own | {"rewards": [{"name": "r", "weight": 2.0}]} | changes


def test_a_run_on_its_way_says_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a traceback where there is no summary yet."""
    run = begun(tmp_path / "run")
    assert "stopped, 0 of 0 rounds" in show(capsys, run.path)
    rewards = RewardRecord(gain={1: 0.25, 2: None}, versions={"r": 3})
    run.log(RoundRecord("train", 4, 9, elapsed_s=30.0, rewards=rewards, reward_calls=96))
    (run.path / "stopped.json").write_text('{"reason": "Ctrl-C"}')
    text = show(capsys, run.path)
    assert "**short**: stopped, 5 of 9 rounds, seed 7" in text
    assert "- gain over the base in the newest round: one step +0.250\n" in text
    assert "- ended early: Ctrl-C\n" in text
    assert "- registrations of rewards: r 3\n" in text
    found = json.loads(show(capsys, run.path, "--json"))
    assert (found["reward_calls"], found["minutes"], found["gain"]["two_step"]) == (96, 0.5, None)


def test_a_configuration_that_cannot_be_read_hides_nothing_else(tmp_path: Path) -> None:
    """Guards against a run of another release that cannot be shown at all."""
    assert own_settings({"name": "x", "stage": "train", "rouns": 3}) == {}
    assert {"lasro", "python", "torch"} <= installed_versions().keys()
