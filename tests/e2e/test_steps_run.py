"""Both stages in one step and four, with a gradient through the last two: gone on with, told, written out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lasro.config import load_config
from lasro_client.report.page import ReportWriter
from lasro_client.run.stage1 import pretrain
from lasro_client.run.stage2 import train

NAMES = ["one_step", "four_step"]
SETTINGS = ["train.steps=[1,4]", "train.gradient_steps=2", "train.warmup_rounds=0", "pretrain.rounds=3"]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.proof
def test_a_run_of_one_step_and_four(config_path: Path, tmp_path: Path) -> None:
    """Guards against a place that still knows one step and two alone: rewards of other samples, a record, a resumed
    run, an evaluation or a report without them."""
    stage1, run = tmp_path / "pretrain", tmp_path / "run"
    pretrain(load_config(config_path, SETTINGS), stage1)
    assert all(list(line["total"]) == NAMES for line in lines(stage1))
    assert lines(stage1)[-1]["reference"]["four_step"] is not None, "of a probe generator"
    assert "reference_four_step" in lines(stage1)[-1]["accuracy_by_kind"]
    taken = [f"train.initial_surrogate={stage1}/surrogate.safetensors"]
    taken += [f"train.initial_base_rewards={stage1}/base_rewards.jsonl"]
    for rounds in (1, 2):
        summary = train(load_config(config_path, [*SETTINGS, *taken, f"train.rounds={rounds}"]), run, [ReportWriter()])
    assert [list(rows) for rows in summary["rewards"].values()] == [NAMES]
    assert list(summary["held_out_drift"]) == NAMES
    last = lines(run)[-1]
    assert last["policy_version"] == 2
    for key in ("total", "gain", "drift", "score"):
        assert list(last[key]) == NAMES
        assert None not in last[key].values()
    assert sorted(path.name for path in (run / "evaluation" / "after").iterdir()) == ["four", "one"]
    report = (run / "report.html").read_text()
    assert "Four steps" in report
    assert "Two steps" not in report
