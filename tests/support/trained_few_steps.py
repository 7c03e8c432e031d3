"""A short run on a few-step model, and its adapter here and in stock diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from few_step_models import NOTHING, FromConfig, difference, load, our_latents, stock_latents, stock_pipeline

from lasro.config import load_config
from lasro_client.run.stage2 import train


def train_and_compare(
    config_path: Path,
    services: Sequence[str],
    tmp_path: Path,
    folder: Path,
    settings: Mapping[str, Any] = NOTHING,
    from_config: FromConfig | None = None,
    call: Mapping[str, Any] = NOTHING,
    num_steps: int | None = None,
) -> None:
    """Two rounds; what they wrote moves the model, and draws the same here and in stock diffusers.

    In one step and two, or in `num_steps` alone.
    """
    given = {"path": folder, "guidance": 1.0, **settings}
    options = [f"{'train' if name == 'timesteps' else 'model'}.{name}={value}" for name, value in given.items()]
    # The scores of two samples alone have too few degrees of freedom to tell a width.
    options += [f"train.steps=[{num_steps}]", "train.batch_size=4"] if num_steps else []
    rounds = ["train.rounds=2", "train.warmup_rounds=0", "train.learning_rate=1e-2", "train.drift_budget=none"]
    summary = train(load_config(config_path, [f"name={tmp_path.name}", *services, *options, *rounds]), tmp_path / "run")
    assert summary["rounds"] == 2
    pipeline, adapters = stock_pipeline(folder, from_config), []
    if "base_adapter" in settings:
        pipeline.load_lora_weights(settings["base_adapter"], adapter_name="few steps")
        adapters.append("few steps")
    num_steps = num_steps or 2
    before = stock_latents(pipeline, num_steps, **call)
    pipeline.load_lora_weights(tmp_path / "run" / "adapter", adapter_name="ours")
    pipeline.set_adapters([*adapters, "ours"])
    after = stock_latents(pipeline, num_steps, **call)
    model = load(folder, **settings)
    model.load_lora(tmp_path / "run" / "adapter")
    assert difference(our_latents(model, num_steps), after) <= 1e-4
    assert (after - before).abs().max() > 1e-4, "nothing was learned"
