"""A run small enough to be done again and again, over real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFIG = """
name = "tiny"
[model]
path = "{model}"
device = "cpu"
[prompts]
train = "train.txt"
held_out = "held-out.txt"
drift = "drift.txt"
[[rewards]]
name = "jpeg-incompressibility"
serve = "lasro_rewards.jpeg:incompressibility"
[surrogate]
tie_margin = 0.0
head_channels = 8
held_out_share = 0.3
[pretrain]
rounds = 4
prompts_per_round = 2
seeds_per_prompt = 3
probe_after = 1
probe_rounds = 2
final_steps = 3
[lora]
rank = 2
[train]
rounds = 4
prompts_per_round = 1
seeds_per_prompt = 3
batch_size = 2
generator_steps = 1
surrogate_steps = 1
warmup_rounds = 1
checkpoint_rounds = 2
report_rounds = 2
[evaluation]
prompts = 3
drift_prompts = 2
"""


@pytest.fixture(scope="session")
def config_path(tmp_path_factory: pytest.TempPathFactory, tiny_model_path: Path) -> Path:
    folder = tmp_path_factory.mktemp("config")
    (folder / "train.txt").write_text("a red star\na blue square\na green ring\n")
    (folder / "held-out.txt").write_text("a red ring\na blue star\na pink heart\n")
    (folder / "drift.txt").write_text("dog face\nred apple\n")
    (folder / "tiny.toml").write_text(CONFIG.format(model=tiny_model_path))
    return folder / "tiny.toml"
