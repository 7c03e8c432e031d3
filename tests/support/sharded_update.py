"""Updates of a generator whose frozen network lies in pieces, each process `python sharded_update.py MODEL FOLDER`.

What one process does alone first, and shares of unequal size, must not keep the others waiting.
"""

from __future__ import annotations

import gc
import json
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from shared_update import PROMPTS, CurvedScore

from lasro.config import RunSettings
from lasro.methods.registry import create_trainer
from lasro.models.registry import load_model
from lasro.models.sharding import held_bytes
from lasro.training.distributed import DistributedContext, processes
from lasro.training.sampling import draw_noises, generator_for, sample_latents
from lasro_client.run.sharded import shard_generator

FOUR = PROMPTS[:4]
VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "micro-batches": {"train": {"micro_batch_size": 1}},
    "checkpointed": {"model": {"gradient_checkpointing": True}, "train": {"two_step_every": 2}},
}


class Updated(NamedTuple):
    """What two updates left: bytes held of all weights, how many whole weights are still there, sums of latents that
    were sampled, figures of the updates, and parameters."""

    held: int
    whole: int
    sampled: float
    figures: list[list[float]]
    parameters: list[list[float]]


def updated(model_path: str, folder: Path, peers: DistributedContext, **variant: dict[str, Any]) -> Updated:
    """Two updates, with samples drawn before and in between; the main process writes the adapter into `folder`."""
    config = RunSettings.model_validate(
        {
            "name": "sharded",
            "model": {"path": model_path, "device": "cpu", "autocast": "none"} | variant.get("model", {}),
            "prompts": {"train": "unused", "held_out": "unused"},
            "rewards": [{"name": "any"}],
            "lora": {"rank": 2},
            "train": {"batch_size": len(FOUR)} | variant.get("train", {}),
        }
    )
    model = load_model(config.model, shard=peers.count > 1)
    trainer = create_trainer(config, model, peers)
    whole = [weakref.ref(each) for each in model.unet.parameters() if not each.requires_grad]  # type: ignore[attr-defined]
    if peers.count > 1:
        shard_generator(trainer, FOUR[0].text)
    gc.collect()
    num_whole = sum(each() is not None for each in whole)
    sampled = sum(peers.all_gather(lambda: _sampled(model, peers.share(3), base=True), float))
    figures = []
    for _ in range(2):
        step = trainer.step(FOUR, CurvedScore())
        known = [*step.scores.values(), *(figure for figure in step if not isinstance(figure, Mapping))]
        figures.append([figure for figure in known if figure is not None])
        sampled += peers.on_main_and_broadcast(lambda: _sampled(model, slice(0, 2)), float)
        if peers.is_main:  # as pictures for the report are drawn
            sampled += _sampled(model, slice(0, 1))
    if peers.is_main:
        trainer.save(folder)
    held = held_bytes(model.unet)  # type: ignore[attr-defined]
    return Updated(held, num_whole, sampled, figures, [each.flatten().tolist() for each in trainer.parameters])


@torch.no_grad()
def _sampled(model: Any, rows: slice, base: bool = False) -> float:
    """Of a part of three prompts, one after the other: so many passes through the network, times two."""
    total = 0.0
    for row in range(rows.start, rows.stop):
        noises = draw_noises(model, 1, generator_for(0, row))
        total += float(sample_latents(model, noises, model.embed([FOUR[row].text]), base)[1].sum())
    return total


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes() as among:
        found = {name: updated(sys.argv[1], Path(sys.argv[2], name), among, **each) for name, each in VARIANTS.items()}
    print(json.dumps(found))
