"""Both stages in one step and four, with a gradient through the last two: resumed, told, exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lives import run_with

from lasro.config import load_config
from lasro_client.run.stage1 import pretrain

NAMES = ["one_step", "four_step"]
SETTINGS = ["train.steps=[1,4]", "train.gradient_steps=2", "train.rounds=4", "train.warmup_rounds=0"]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.proof
def test_a_run_of_one_step_and_four(config_path: Path, tmp_path: Path) -> None:
    """Guards against a place that still knows one step and two alone: rewards of other samples, a record, an
    evaluation or a report without them, or a resumed run that is another."""
    pretrain(load_config(config_path, [*SETTINGS, "pretrain.rounds=3"]), tmp_path / "pretrain")
    stage1 = tmp_path / "pretrain"
    assert [sorted(line["total"]) for line in lines(stage1)] == [sorted(NAMES)] * 3
    assert lines(stage1)[-1]["reference"]["four_step"] is not None, "of a probe generator"
    assert "reference_four_step" in lines(stage1)[-1]["accuracy_by_kind"]
    taken = [f"train.initial_surrogate={stage1}/surrogate.safetensors"]
    taken += [f"train.initial_base_rewards={stage1}/base_rewards.jsonl"]
    for name, fault in (("whole", "none"), ("killed", "sampling")):
        run = tmp_path / name
        status = run_with(fault, 2, config_path, run, [*SETTINGS, *taken])
        if fault != "none":
            assert status != 0
            assert run_with("none", 0, config_path, run, [*SETTINGS, *taken]) == 0
    whole, killed = lines(tmp_path / "whole"), lines(tmp_path / "killed")
    for key in ("reward", "total", "gain", "drift", "distance", "score", "loss", "grad_norm", "policy_version"):
        assert [line[key] for line in killed] == [line[key] for line in whole], key
    for key in ("total", "gain", "drift", "distance", "score"):
        assert list(whole[-1][key]) == NAMES, key
    assert all(whole[-1][key]["four_step"] is not None for key in ("total", "gain", "drift", "score"))
    summary = json.loads((tmp_path / "killed" / "summary.json").read_text())
    assert [list(rows) for rows in summary["rewards"].values()] == [NAMES]
    assert list(summary["held_out_drift"]) == NAMES
    evaluation = tmp_path / "killed" / "evaluation" / "after"
    assert sorted(path.name for path in evaluation.iterdir()) == ["four", "one"]
    report = (tmp_path / "killed" / "report.html").read_text()
    assert "Four steps" in report
    assert "Two steps" not in report
