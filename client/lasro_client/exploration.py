"""Off-policy exploration: samples pushed up the surrogate's gradient, to be scored by the true reward.

A surrogate that only saw the generator's own samples ranks them well, yet its gradient soon leads to latents that it
loves and the reward does not. Shown those, scored truthfully beside the samples they came from, it learns better.
This is ours; LaSRO (arXiv 2411.15247) explores by many noises per prompt and by both stages.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lasro.config import RunSettings
from lasro.surrogate import draw_augmentation
from lasro_client.score_sources import ScoreSource

STEPS = 4
Explore = Callable[[Tensor, list[str], torch.Generator], Tensor]
"""Latents [B, C, H, W] and their prompts to pushed latents."""


def exploration(config: RunSettings, distance: float, source: ScoreSource) -> Explore | None:
    """`push` as a run's settings say; None where they switch it off."""
    if distance == 0:
        return None
    return partial(push, source=source, distance=distance, max_timestep=config.surrogate.max_timestep)


def push(
    latents_BCHW: Tensor,
    prompts: list[str],
    generator: torch.Generator,
    source: ScoreSource,
    distance: float,
    max_timestep: int,
) -> Tensor:
    """The latents after a few steps of equal length up the gradient, each its own way from 0 to `distance`.

    `distance` is the longest way as a share of a latent's own norm.
    """
    z, device = latents_BCHW, latents_BCHW.device
    way_B = torch.rand(len(z), generator=generator).to(device) * distance * z.flatten(1).norm(dim=1)
    for _ in range(STEPS):
        timesteps_B, noise_BCHW = draw_augmentation(z.shape, max_timestep, generator)
        _, gradient_BCHW = source.score_and_gradient(z, timesteps_B.to(device), noise_BCHW.to(device), prompts)
        length_B = gradient_BCHW.flatten(1).norm(dim=1).clamp_min(1e-12)
        z = z + gradient_BCHW * (way_B / STEPS / length_B)[:, None, None, None]
    return z
