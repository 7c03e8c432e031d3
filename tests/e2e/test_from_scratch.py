"""The demo's surrogate from nothing, with a tiny random model in place of the bundled one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lasro.config import load_config
from lasro_client.run.from_scratch import WARM_UP_RUNS, surrogate_from_scratch, with_initial_surrogate


@pytest.mark.proof
def test_the_demos_surrogate_comes_from_stage_one_warm_up_runs_and_their_samples(
    config_path: Path, tmp_path: Path
) -> None:
    """Guards against `lasro demo --from-scratch` failing after hours, and against a part that leaves another's out."""
    stage1 = load_config(config_path, ["pretrain.keep_samples=true"])
    warm_up = load_config(config_path, ["train.keep_samples=true", "train.rounds=2"])
    kept = ["pretrain.rounds=0", "pretrain.initial_samples=['runs-of-another-day']"]
    final = load_config(config_path, [*kept, "surrogate.held_out_share=0.0"])
    surrogate, base_rewards = surrogate_from_scratch(stage1, warm_up, final, tmp_path)
    demo = with_initial_surrogate(load_config(config_path), surrogate, base_rewards)
    assert demo.train.initial_surrogate == str(tmp_path / "surrogate" / "surrogate.safetensors")
    assert demo.train.initial_base_rewards == tmp_path / "stage1" / "base_rewards.jsonl"
    summaries = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*/summary.json"))]
    assert len(summaries) == WARM_UP_RUNS + 2
    assert len({(summary["run"], summary["seed"]) for summary in summaries if summary["rounds"] == 2}) == WARM_UP_RUNS
    last = json.loads((tmp_path / "surrogate" / "summary.json").read_text())
    assert last["reward_calls"] == 0
    assert last["surrogate_steps"] == 3
    config = json.loads((tmp_path / "surrogate" / "config.json").read_text())
    assert len(config["pretrain"]["initial_samples"]) == WARM_UP_RUNS + 1
    assert surrogate_from_scratch(stage1, warm_up, final, tmp_path) == (surrogate, base_rewards), "done again"
