"""Folders that earlier releases made: found, renamed, and resumed as they were begun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lasro.config import RunSettings
from lasro.config.older_defaults import OLDER_DEFAULTS
from lasro.errors import ConflictError
from lasro.training.distributed import DistributedContext
from lasro.training.process_codec import decode, encode
from lasro_client.run.base_sample_rewards import read_base_rewards
from lasro_client.run.folder import RunFolder
from lasro_client.run.from_scratch import warm_up_folder, with_initial_surrogate
from lasro_client.run.round_record import RoundRecord, Stage

BEFORE_BUDGETS = Path(__file__).parents[1] / "support" / "config_before_drift_budgets.json"
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


def before_budgets(path: Path, **train: Any) -> None:
    """A run of two rounds begun by the release before `train.drift_budget`, by the settings of `CONFIG`."""
    path.mkdir(parents=True, exist_ok=True)
    known = json.loads(BEFORE_BUDGETS.read_text())
    known["train"] |= train
    (path / "config.json").write_text(json.dumps(known))
    for round in range(2):
        RunFolder(path, CONFIG, "train").log(RoundRecord("train", round))


def settings(**train: Any) -> RunSettings:
    return RunSettings.model_validate(CONFIG.model_dump(mode="json", exclude_unset=True) | {"train": train})


def taken_up(path: Path, config: RunSettings, stage: Stage = "train") -> RunSettings:
    """The settings that a resumed run goes by."""
    folder = RunFolder(path, config, stage)
    folder.go_on_as_begun(DistributedContext())
    folder.result()
    folder.open()
    return folder.config


def test_every_default_that_changed_is_known() -> None:
    """Bug: one more default changes, and runs of the last release are refused for a setting that nobody wrote."""
    then, now = json.loads(BEFORE_BUDGETS.read_text()), CONFIG.model_dump(mode="json")
    tables = {name: table for name, table in then.items() if isinstance(table, dict)}
    changed = {
        name: {key: value for key, value in table.items() if now[name][key] != value} for name, table in tables.items()
    }
    added = {"train": {"drift_budget": None}}
    assert {name: table | added.get(name, {}) for name, table in changed.items() if table} == OLDER_DEFAULTS


def test_a_run_from_before_drift_budgets_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    """Bug: the TOML file that began it is refused, or its rounds end, rank first, or are held by a budget."""
    before_budgets(tmp_path)
    written = (tmp_path / "config.json").read_text()
    for config in (settings(), settings(warmup_rounds=0), settings(rounds=150, drift_budget="none")):
        train = taken_up(tmp_path, config).train
        assert (train.rounds, train.max_rounds, train.warmup_rounds, train.drift_budget) == (150, 150, 0, None)
        assert (train.seeds_per_prompt, train.learning_rate, train.generator_steps) == (6, 5e-4, 1)
        assert not train.is_from_nothing
    assert (tmp_path / "config.json").read_text() == written


def test_it_keeps_what_it_was_given_too(tmp_path: Path) -> None:
    """Guards against a run of 40 rounds that is made one of 150, or is no longer limited by its drift."""
    given = {"rounds": 40, "warmup_rounds": 3, "learning_rate": 3e-4}
    before_budgets(tmp_path, **given)
    resumed = taken_up(tmp_path, settings(**given))
    assert (resumed.train.max_rounds, resumed.train.warmup_rounds) == (40, 3)
    assert resumed.health.max_drift == 0.65


@pytest.mark.parametrize("changed", [{"drift_budget": 0.4}, {"warmup_rounds": 4}, {"ranking_steps": 3}])
def test_what_is_said_of_it_still_counts(tmp_path: Path, changed: dict[str, Any]) -> None:
    """Guards against a setting that the user just wrote and that is passed over without a word."""
    before_budgets(tmp_path)
    (name,) = changed
    with pytest.raises(ConflictError, match=f"differing in train.{name};"):
        taken_up(tmp_path, settings(**changed))


def test_more_rounds_of_it_are_again_taken_up(tmp_path: Path) -> None:
    """Bug: once its limit had grown, config.json was one of today and the same TOML file was refused."""
    before_budgets(tmp_path)
    for rounds in (160, 170):
        assert taken_up(tmp_path, settings(rounds=rounds)).train.max_rounds == rounds
    assert taken_up(tmp_path, settings()).train.drift_budget is None
    assert json.loads((tmp_path / "config.json").read_text())["train"]["rounds"] == 150, "as that TOML file says"


def test_a_finished_one_stays_finished(tmp_path: Path) -> None:
    """Bug: the command that made it began it anew, for as many rounds as a run from nothing may have."""
    before_budgets(tmp_path)
    summary = {"rounds": 150, "ended": None}
    RunFolder(tmp_path, settings(), "train").finish(summary)
    folder = RunFolder(tmp_path, settings(), "train")
    folder.go_on_as_begun(DistributedContext())
    assert folder.result() == summary


def test_a_run_of_today_and_one_without_a_round_take_todays_defaults(tmp_path: Path) -> None:
    """Guards against a new run that gets the settings of then, or a mended one that keeps those of its first try."""
    before_budgets(tmp_path / "no round")
    (tmp_path / "no round" / "log.jsonl").unlink()
    RunFolder(tmp_path / "today", settings(), "train").open()
    (tmp_path / "today" / "log.jsonl").touch()
    for name in ("no round", "today", "new"):
        train = taken_up(tmp_path / name, settings()).train
        assert (train.rounds, train.warmup_rounds, train.drift_budget) == (None, None, 0.4)
    assert json.loads((tmp_path / "no round" / "config.json").read_text())["train"]["drift_budget"] == 0.4


def test_processes_without_the_folder_agree(tmp_path: Path) -> None:
    """Bug: only the main process sees config.json, and the others would rank while it updates the generator."""
    before_budgets(tmp_path)
    sent: list[bytes] = []

    class Peers(DistributedContext):
        def on_main_and_broadcast(self, work: Any, kind: Any) -> Any:
            if self.is_main:
                sent.append(encode(work(), kind))
            return decode(sent[0], kind)

    main, other = RunFolder(tmp_path, settings(), "train"), RunFolder(tmp_path / "elsewhere", settings(), "train")
    assert main.go_on_as_begun(Peers(0, 2)) == other.go_on_as_begun(Peers(1, 2))
    assert other.config.train.max_rounds == 150
