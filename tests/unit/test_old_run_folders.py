"""Folders that version 0.1 made: found, renamed and resumed."""

from __future__ import annotations

from pathlib import Path

from lasro.config import RunSettings
from lasro_client.run.base_sample_rewards import read_base_rewards
from lasro_client.run.folder import RunFolder
from lasro_client.run.from_scratch import warm_up_folder, with_initial_surrogate

LINE = '{"seed": 0, "round": 0, "groups": [{"prompt": "p", "rewards": {"r": [0.1, 0.2]}}]}\n'
CONFIG = RunSettings.model_validate(
    {"name": "old", "prompts": {"train": "t.txt", "held_out": "h.txt"}, "rewards": [{"name": "r"}]}
)


def test_old_base_rewards_are_renamed_and_found_by_either_name(tmp_path: Path) -> None:
    """Guards against a stage 1 that writes a second file, of which half of the rounds are missing, and against runs of
    stage 2 that are refused because the file that they name is another one now."""
    stage1, old, new = tmp_path / "stage1", tmp_path / "stage1" / "labels.jsonl", tmp_path / "stage1/base_rewards.jsonl"
    stage1.mkdir()
    old.write_text(LINE)
    stage2 = RunFolder(tmp_path / "stage2", with_initial_surrogate(CONFIG, stage1 / "s.safetensors", old), "train")
    stage2.open()
    (stage2.path / "log.jsonl").touch()
    RunFolder(stage1, CONFIG, "pretrain").open()
    assert not old.exists()
    assert new.read_text() == LINE
    for name in (old, new):
        assert read_base_rewards(name, 1, {"r"})[0].group.prompt == "p"
        RunFolder(stage2.path, with_initial_surrogate(CONFIG, stage1 / "s.safetensors", name), "train").open()


def test_a_file_of_that_name_that_was_not_renamed_is_read(tmp_path: Path) -> None:
    """Guards against reading another file than the one that the settings name."""
    (tmp_path / "labels.jsonl").write_text(LINE)
    (tmp_path / "base_rewards.jsonl").write_text(LINE.replace('"p"', '"other"'))
    assert read_base_rewards(tmp_path / "labels.jsonl", 1, {"r"})[0].group.prompt == "p"


def test_warm_up_runs_of_the_old_name_are_gone_on_with(tmp_path: Path) -> None:
    """Guards against paying for five runs again because their folders are called otherwise."""
    (tmp_path / "rehearsal-1").mkdir()
    assert [warm_up_folder(tmp_path, i).name for i in range(3)] == ["warm-up-0", "rehearsal-1", "warm-up-2"]
