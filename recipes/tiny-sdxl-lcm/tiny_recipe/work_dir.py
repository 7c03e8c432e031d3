"""The folder of a recipe's work: emoji, state that travels, exact checkpoints that do not, grids, model, report.

emoji.safetensors       every emoji, one file
state/                  what another machine needs to go on: averaged weights in half precision, tokenizer, progress
checkpoints/            a stage under way, exactly; for the same machine, removed when the stage ends
grids/ model/ report/   what comes out
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import AliasChoices, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lasro.config import Settings, differing_keys
from lasro.errors import ConflictError, ModelError, StorageError
from lasro.files import write_atomically, write_json
from tiny_recipe.config import Recipe

STATE_FILE_BYTES = 15_000_000  # most of a state file
STATE_FILES = 8  # most of them
HEADER_BYTES = 200_000  # kept free in each file for names and shapes


class StageProgress(Settings):
    """How far a stage is."""

    steps: int = 0
    """Optimiser steps done."""
    trained_s: float = 0.0
    """Training time spent, which the schedule runs over: without compilation, data and saving."""
    wall_s: float = 0.0
    """All time spent in it."""
    sessions: int = Field(default=0, validation_alias=AliasChoices("sessions", "visits"))
    """Times it was started; state written by 0.1.0 says `visits`."""
    finished: bool = False
    """Whether its schedule ran to the end."""
    device: str = ""
    """What it last ran on."""
    figures: dict[str, float] = Field(default_factory=dict)
    """What it last measured; for the VAE its scaling factor too."""


class WorkDir:
    """Reads and writes the folder. State belongs to one recipe; times may change between two sessions, nothing else."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        self.emoji, self.state = folder / "emoji.safetensors", folder / "state"
        self.tokenizer = self.state / "tokenizer.json"
        self._progress = self.state / "progress.json"

    def progress(self, stage: str) -> StageProgress:
        """Raises ConflictError where the state is another recipe's."""
        if not self._progress.exists():
            return StageProgress()
        try:
            found = json.loads(self._progress.read_text(encoding="utf-8"))
            before = found["recipe"]
            stages = {name: StageProgress.model_validate(value) for name, value in found["stages"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise StorageError(
                f"{self._progress}: cannot be read ({error}); delete {self.state} to begin anew"
            ) from error
        differing = [key for key in differing_keys(before, self._dump()) if not key.endswith(("minutes", ".steps"))]
        if differing:
            raise ConflictError(
                f"{self.state}: made with other settings of {', '.join(differing)}; choose another --work, or delete it"
            )
        return stages.get(stage, StageProgress())

    def finished(self, stage: str) -> StageProgress:
        """Progress of a stage that others need; raises ConflictError where it has not ended."""
        progress = self.progress(stage)
        if not progress.finished:
            raise ConflictError(f"{self.state}: the {stage} stage is not finished, and this one needs it; run it first")
        return progress

    def save(self, stage: str, progress: StageProgress, weights: Mapping[str, Tensor]) -> None:
        """Averaged weights, in half precision and in files below 15 MB, and then how far the stage is."""
        parts = split({name: tensor.half() for name, tensor in weights.items()})
        for number, part in enumerate(parts):
            write_atomically(self.state / f"{stage}-{number}.safetensors", save(part))
        stages = {name: self.progress(name) for name in ("vae", "teacher", "lcm")} | {stage: progress}
        kept = {name: value.model_dump() for name, value in stages.items() if value.sessions}
        write_json(self._progress, {"recipe": self._dump(), "stages": kept})

    def weights(self, stage: str, prefix: str = "") -> dict[str, Tensor]:
        """The averaged weights of a stage, float32, those under `prefix` and without it; raises ModelError."""
        paths = sorted(self.state.glob(f"{stage}-*.safetensors"))
        if not paths:
            raise ModelError(f"{self.state}: no weights of the {stage} stage there; run it first, or carry them here")
        tensors = _load(paths)
        return {name.removeprefix(prefix): t.float() for name, t in tensors.items() if name.startswith(prefix)}

    def checkpoint(self, stage: str) -> Path:
        return self.folder / "checkpoints" / f"{stage}.safetensors"

    def save_checkpoint(self, stage: str, tensors: Mapping[str, Tensor], steps: int) -> None:
        named = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        write_atomically(self.checkpoint(stage), save(named | {"steps": torch.tensor(steps)}))

    def load_checkpoint(self, stage: str, steps: int) -> dict[str, Tensor] | None:
        """The exact state at that step, where this machine has it."""
        path = self.checkpoint(stage)
        tensors = _load([path]) if path.exists() else {}
        return tensors if int(tensors.pop("steps", torch.tensor(-1))) == steps else None

    def _dump(self) -> dict[str, Any]:
        return self.recipe.model_dump(mode="json")


def split(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors in order of name, in as few parts as fit into state files."""
    parts: list[dict[str, Tensor]] = [{}]
    room_bytes = STATE_FILE_BYTES - HEADER_BYTES
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous().cpu()
        room_bytes -= tensor.nbytes
        if room_bytes < 0:
            parts.append({})
            room_bytes = STATE_FILE_BYTES - HEADER_BYTES - tensor.nbytes
        parts[-1][name] = tensor
    return parts


def _load(paths: list[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            tensors |= load_file(path)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: cannot be read ({error}); carry or make it again") from error
    return tensors
