"""`train.initial_adapter`: a run of stage 2 whose generator begins with an adapter in place of the base."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lasro.errors import ConflictError, ModelError
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.process_codec import CpuTensor
from lasro_client.run.folder import RunFolder

COPY = "initial_adapter"
"""Folder in the run's, so that a resumed run does not need the file any more."""


def start_from_adapter(folder: RunFolder, trainer: GeneratorTrainer) -> None:
    """Let the trainer, fresh so far, begin with the run's initial adapter where its settings name one.

    Raises ModelError for one that cannot be read or does not fit `[lora]`, ConflictError where it is not the one that
    the run began with.
    """
    path = folder.config.train.initial_adapter
    if path is not None:
        trainer.start_from(trainer.peers.on_main_and_broadcast(lambda: _values(folder, trainer, path), list[CpuTensor]))


def _values(folder: RunFolder, trainer: GeneratorTrainer, path: Path) -> list[Tensor]:
    """Always those of the copy: they differ from the file's by a rounding, and a resumed run gets the same bits."""
    copy = folder.path / COPY
    if not folder.has_checkpoint:
        trainer.start_from(_read(trainer, path))
        folder.export(trainer, COPY)
        return _read(trainer, copy)
    kept = _read(trainer, copy)
    if path.exists() and not _equal(_read(trainer, path), kept):
        raise ConflictError(
            f"{path}: is not the adapter that the run in {folder.path} began with; bring that back, or delete the file "
            f"to resume from the copy in {copy}, or choose another folder with --out"
        )
    return kept


def _read(trainer: GeneratorTrainer, path: Path) -> list[Tensor]:
    try:
        return [value.cpu() for value in trainer.model.initial_lora(path, trainer.lora)]
    except ModelError as error:
        raise ModelError(f"train.initial_adapter: {error}") from error


def _equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-9) for a, b in zip(some, others, strict=True))
