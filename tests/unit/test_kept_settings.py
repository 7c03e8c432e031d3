"""Which settings a run takes that has rounds already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lasro.config import RunSettings
from lasro.errors import ConflictError
from lasro_client.run.folder import RunFolder
from lasro_client.run.round_record import RoundRecord, Stage

DONE = {"budget": {"max_reward_calls": 100, "max_minutes": 10}, "train": {"rounds": 4}, "pretrain": {"rounds": 4}}


def folder(path: Path, stage: Stage, changes: dict[str, Any]) -> RunFolder:
    tables = {name: table | changes.get(name, {}) for name, table in DONE.items()}
    files = {"train": "t.txt", "held_out": "h.txt"}
    config = RunSettings.model_validate({"name": "run", "prompts": files, "rewards": [{"name": "r"}]} | tables)
    return RunFolder(path, config, stage)


def begun(path: Path, stage: Stage, summary: dict[str, Any] | None) -> None:
    """A run of four rounds, three of them done for 60 calls in five minutes."""
    run = folder(path, stage, {})
    run.open()
    for round in range(3):
        run.log(RoundRecord(stage=stage, round=round, reward_calls=20 * (round + 1), elapsed_s=100.0 * (round + 1)))
    if summary is not None:
        run.finish(summary)


@pytest.mark.parametrize("stage", ["train", "pretrain"])
@pytest.mark.parametrize("finished", [True, False])
def test_limits_may_grow(tmp_path: Path, stage: Stage, finished: bool) -> None:
    """Bug: a run that had become better until its last round, or that its budget ended, had to be paid for again."""
    summary = {"rounds": 3, "ended": None} if finished else None
    begun(tmp_path, stage, summary)
    assert folder(tmp_path, stage, {}).result() == summary, "unchanged settings ask for nothing more"
    assert folder(tmp_path, stage, {stage: {"rounds": 3}}).result() == summary
    longer = folder(tmp_path, stage, {"budget": {"max_reward_calls": None, "max_minutes": 20}, stage: {"rounds": 9}})
    assert longer.result() is None
    assert folder(tmp_path, stage, {}).result() == summary, "nothing is changed before the run is opened"
    longer.open()
    assert longer.summary() is None
    assert longer.result() is None
    assert folder(tmp_path, stage, {stage: {"rounds": 3}, "budget": {"max_minutes": 5}}).result() is None


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"train": {"rounds": 2}}, "train.rounds: got 2, expected at least the 3 of the run that is there"),
        ({"budget": {"max_reward_calls": 59}}, "budget.max_reward_calls: got 59, expected at least the 60 "),
        ({"budget": {"max_minutes": 4.9}}, "budget.max_minutes: got 4.9, expected at least the 5 "),
        ({"train": {"rounds": 9, "ema": 0.5}}, "made with another configuration, differing in train.ema;"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_what_is_done_cannot_be_taken_back(tmp_path: Path, changes: dict[str, Any], part: str, finished: bool) -> None:
    """Bug: rounds that are in the log and were paid for, and a summary that counts fewer."""
    begun(tmp_path, "train", {"rounds": 3, "ended": None} if finished else None)
    for check in (folder(tmp_path, "train", changes).result, folder(tmp_path, "train", changes).open):
        with pytest.raises(ConflictError) as caught:
            check()
        assert str(caught.value).startswith(f"{tmp_path}: {part}")
    assert (folder(tmp_path, "train", {}).summary() is not None) == finished


def test_a_run_that_was_ended_takes_no_more_rounds(tmp_path: Path) -> None:
    """Bug: more rounds are asked for, none is done, and the status is 0."""
    begun(tmp_path, "train", {"rounds": 3, "ended": "the model drifted"})
    assert folder(tmp_path, "train", {}).result() is not None
    with pytest.raises(ConflictError, match="ended after 3 rounds and takes no more: the model drifted"):
        folder(tmp_path, "train", {"train": {"rounds": 9}}).result()
