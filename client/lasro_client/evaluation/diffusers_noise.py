"""The Gaussian noise that stock diffusers would draw for a prompt.

Shape legend: B prompts, CHW one latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


def diffusers_noises(seeds: Sequence[int], latent_shape: tuple[int, int, int], steps: int) -> list[torch.Tensor]:
    """Noises of `steps` sampling steps for each seed: a list of `steps` float32 CPU tensors [B, C, H, W].

    Row i is what `StableDiffusionXLPipeline(generator=torch.Generator("cpu").manual_seed(seeds[i]))` draws for one
    prompt with the LCM scheduler: first the initial latent, then one draw before each further step.
    """
    draws = []
    for seed in seeds:
        generator = torch.Generator("cpu").manual_seed(seed)
        # One draw per step, never one large draw: torch fills tensors in blocks, so the numbers would differ.
        draws.append([torch.randn((1, *latent_shape), generator=generator) for _ in range(steps)])
    return [torch.cat(step) for step in zip(*draws, strict=True)]
