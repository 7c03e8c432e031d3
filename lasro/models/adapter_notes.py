"""What an adapter's file says of how it was trained: entries of its metadata, over which stock diffusers reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file

from lasro.config import Steps, Timesteps
from lasro.models.adapter_file import open_adapter
from lasro.num_steps import NumSteps

STEPS_METADATA = "lasro_steps"
TIMESTEPS_METADATA = "lasro_timesteps"
NOISE_METADATA = "lasro_noise_tilting"
"""Of an adapter that moves the first noise: stock, which knows nothing of that, would draw something else."""


def note(file: Path, key: str, value: str) -> None:
    """Write an entry into an adapter's metadata."""
    with safe_open(file, framework="pt") as opened:
        metadata = (opened.metadata() or {}) | {key: value}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file(tensors, file, metadata)


def noted(path: Path, key: str) -> str | None:
    """An entry of the metadata of an adapter, its file or folder; raises ModelError for one that cannot be read."""
    with open_adapter(path) as (_, opened):
        return (opened.metadata() or {}).get(key)


def note_steps(file: Path, steps: tuple[NumSteps, ...]) -> None:
    """Write in which numbers of steps an adapter was trained to be sampled."""
    note(file, STEPS_METADATA, json.dumps(steps))


def noted_steps(path: Path) -> tuple[NumSteps, ...] | None:
    """What `note_steps` wrote; None where nothing is known. Raises ModelError."""
    return _parsed(Steps, noted(path, STEPS_METADATA))


def note_timesteps(file: Path, timesteps: tuple[int, ...]) -> None:
    """Write at which timesteps an adapter was trained to be sampled."""
    note(file, TIMESTEPS_METADATA, json.dumps(timesteps))


def noted_timesteps(path: Path) -> tuple[int, ...] | None:
    """What `note_timesteps` wrote; None for the scheduler's own. Raises ModelError."""
    return _parsed(Timesteps, noted(path, TIMESTEPS_METADATA))


def _parsed(kind: Any, value: str | None) -> tuple[int, ...] | None:
    try:
        return None if value is None else TypeAdapter[tuple[int, ...]](kind).validate_json(value)
    except ValidationError:
        return None  # somebody else's key
