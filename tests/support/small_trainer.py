"""A generator's trainer to test updates with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lasro.config import RunSettings
from lasro.methods.registry import create_trainer
from lasro.models.registry import load_model
from lasro.training.generator_trainer import GeneratorTrainer

ANY = {"name": "any"}


def trainer_of(
    model_path: Path, method: dict[str, Any] | None = None, reward: dict[str, Any] = ANY, **train: Any
) -> GeneratorTrainer:
    """Of a LoRA of rank 2, on the CPU; `train` are its settings."""
    config = RunSettings.model_validate(
        {
            "name": "generator",
            "model": {"path": str(model_path), "device": "cpu", "autocast": "none"},
            "prompts": {"train": "unused", "held_out": "unused"},
            "rewards": [reward],
            "lora": {"rank": 2},
            "method": method or {},
            "train": train,
        }
    )
    return create_trainer(config, load_model(config.model))
