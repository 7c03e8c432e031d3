"""What a run took from data sets stays in its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lasro.config import RunSettings
from lasro.errors import ConfigError, ConflictError
from lasro.training.distributed import DistributedContext
from lasro.training.process_codec import decode, encode
from lasro_client.run.frozen_prompts import FrozenPrompts
from lasro_client.run.run_prompts import RunPrompts, read_run_prompts

LONG = "a red circle and " * 12 + "a star"
ROWS = [
    {"prompt": "a red disc", "tag": [1, None]},
    {"prompt": "two cats\nand “a dog”", "tag": None},
    {"prompt": LONG, "tag": None},
    {"prompt": "# a star", "tag": [2]},
    {"prompt": "a ring", "tag": None},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def settings(data: Path, model: Path, held_out: dict[str, Any] | None = None, **table: Any) -> RunSettings:
    prompts = {"train": {"dataset": str(data), "metadata": ["tag"], "limit": 3} | table}
    prompts["held_out"] = {"dataset": str(data), "skip": 3} | (held_out or {})
    run = {"name": "frozen", "model": {"path": str(model)}, "prompts": prompts, "rewards": [{"name": "any"}]}
    return RunSettings.model_validate(run)


def read(config: RunSettings, folder: Path) -> RunPrompts:
    return read_run_prompts(config, folder, DistributedContext())


def test_a_run_goes_on_with_the_same_prompts_without_the_data_set(
    data: Path, one_level_model_path: Path, tmp_path: Path
) -> None:
    """Bug: a resumed run asked the hub again, and was trained on other prompts once the data set had changed."""
    config, folder = settings(data, one_level_model_path), tmp_path / "run"
    first = read(config, folder)
    assert [tuple(prompt) for prompt in first.train.prompts] == [
        ("a red disc", {"tag": [1, None]}),
        ("two cats\nand “a dog”", None),
        ("# a star", {"tag": [2]}),
    ]
    assert first.held_out.texts == ["a ring"]
    data.unlink()
    assert read(config, folder) == first
    assert first.train.path == folder / "prompts" / "train.jsonl"
    assert len((folder / "prompts" / "train.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_what_was_read_stands_in_the_folder_and_in_the_notes(
    data: Path, one_level_model_path: Path, tmp_path: Path
) -> None:
    """Bug: nothing said how many prompts a run had, of which commit, or that the longest were left out."""
    config = settings(data, one_level_model_path)
    notes = read(config, tmp_path / "run").check(config)
    what = "out of 5 rows; left out: 1 too long for the model"
    assert notes == [f"3 prompts of {data} (train), {what}", f"1 prompts of {data} (train), {what}"]
    kept = json.loads((tmp_path / "run" / "prompts" / "datasets.json").read_text())
    assert kept.keys() == {"train", "held_out"}
    assert kept["train"]["settings"]["dataset"] == str(data)
    found = {key: kept["train"]["read"][key] for key in ("prompts", "rows", "too_long", "revision")}
    assert found == {"prompts": 3, "rows": 5, "too_long": 1, "revision": None}


def test_prompts_that_are_trained_on_and_measured_on_are_a_warning_for_data_sets_too(
    data: Path, one_level_model_path: Path, tmp_path: Path
) -> None:
    """Bug: both were taken from the beginning of one split, and nobody was told."""
    config = settings(data, one_level_model_path, {"skip": 0, "limit": 1})
    *_, warning = read(config, tmp_path / "run").check(config)
    frozen = tmp_path / "run" / "prompts"
    assert warning.startswith(f"{frozen}/held_out.jsonl:1: 1 of 1 prompts stand in {frozen}/train.jsonl too")


def test_other_settings_read_the_data_set_again(data: Path, one_level_model_path: Path, tmp_path: Path) -> None:
    """Bug: a run without rounds, started again with another limit, kept the prompts of the first try."""
    read(settings(data, one_level_model_path), tmp_path / "run")
    assert len(read(settings(data, one_level_model_path, limit=1), tmp_path / "run").train.prompts) == 1
    data.unlink()
    with pytest.raises(ConfigError, match=r"data\.parquet: no such file or folder of prompts"):
        read(settings(data, one_level_model_path, limit=2), tmp_path / "run")


def test_a_file_that_was_edited_since_is_refused(data: Path, one_level_model_path: Path, tmp_path: Path) -> None:
    """Bug: a run that is resumed draws other prompts than its first half without a word."""
    config, folder = settings(data, one_level_model_path), tmp_path / "run"
    read(config, folder)
    kept = folder / "prompts" / "train.jsonl"
    for break_it in (lambda: kept.write_text('{"prompt": "a cat"}\n'), kept.unlink):
        break_it()
        with pytest.raises(ConflictError, match=rf"{kept}: is not what the run in {folder} took from its data set"):
            read(config, folder)
    (folder / "prompts" / "datasets.json").unlink()
    assert len(read(config, folder).train.prompts) == 3


def test_a_folder_of_an_earlier_release_is_read_with_the_settings_that_came_since(
    data: Path, one_level_model_path: Path, tmp_path: Path
) -> None:
    """Bug: a setting that a release adds would make each older folder read its data set again."""
    config, folder = settings(data, one_level_model_path), tmp_path / "run"
    first = read(config, folder)
    path = folder / "prompts" / "datasets.json"
    kept = json.loads(path.read_text())
    del kept["train"]["settings"]["streaming"]
    path.write_text(json.dumps(kept))
    data.unlink()
    assert read(config, folder) == first


def test_other_processes_get_what_the_main_one_read(data: Path, one_level_model_path: Path, tmp_path: Path) -> None:
    """Bug: each process of a run asked the hub, and one whose machine cannot reach it ended all."""
    config, folder = settings(data, one_level_model_path), tmp_path / "run"
    first = read(config, folder).train
    assert first.record is not None
    frozen = FrozenPrompts([(prompt.text, prompt.metadata) for prompt in first.prompts], first.record)
    assert decode(encode(frozen, FrozenPrompts), FrozenPrompts).as_file(folder, "train") == first
