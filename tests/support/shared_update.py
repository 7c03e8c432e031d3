"""A few updates of a generator, by one process or by its peers, each `python shared_update.py MODEL`.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

import json
import sys

import torch
from torch import Tensor

from lasro.config import RunSettings
from lasro.methods.registry import create_trainer
from lasro.models.registry import load_model
from lasro.training.distributed import DistributedContext, processes
from lasro.training.prompts import Prompt

EVERY = (1, 2)
"""What `train.two_step_every` is tried with."""
PROMPTS = [Prompt(text) for text in ("a red star", "a blue square", "a green ring", "a pink heart", "a gray cross")]


class CurvedScore:
    """Scores by a quadratic, so that gradients differ between samples and depend on the noise drawn for each."""

    max_timestep = 200

    def score_and_gradient(
        self, latents_BCHW: Tensor, timesteps_B: Tensor, noise_BCHW: Tensor, prompts: list[str]
    ) -> tuple[Tensor, Tensor]:
        assert len(latents_BCHW) == len(timesteps_B) == len(noise_BCHW) == len(prompts)
        shifted = latents_BCHW - noise_BCHW
        return -shifted.square().sum((1, 2, 3)), -2 * shifted


def all_updates(model_path: str, peers: DistributedContext) -> list[list[list[float]]]:
    """`updates` for each of EVERY."""
    return [updates(model_path, every, peers) for every in EVERY]


def updates(model_path: str, two_step_every: int, peers: DistributedContext) -> list[list[float]]:
    """Of four updates loss, regulariser, both scores and gradient norm; then the sizes of the adapter's parts."""
    config = RunSettings.model_validate(
        {
            "name": "shared",
            "model": {"path": model_path, "device": "cpu", "autocast": "none"},
            "prompts": {"train": "unused", "held_out": "unused"},
            "rewards": [{"name": "any"}],
            "lora": {"rank": 2},
            "train": {"batch_size": len(PROMPTS), "two_step_every": two_step_every},
        }
    )
    trainer = create_trainer(config, load_model(config.model), peers)
    steps = [trainer.step(PROMPTS, CurvedScore()) for _ in range(4)]
    figures = [
        [step.loss, step.regulariser, *step.scores.values(), step.grad_norm, step.distance or 0.0] for step in steps
    ]
    return [*figures, [parameter.norm().item() for parameter in trainer.parameters]]


if __name__ == "__main__":
    torch.set_num_threads(1)
    with processes() as peers:
        found = all_updates(sys.argv[1], peers)
    print(json.dumps(found))
