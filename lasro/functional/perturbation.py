"""Smooth random perturbations of latents: what the reward says of them shows the surrogate which way is up.

Samples of one generator differ in few ways, where it is sure of itself in hardly any. A perturbed sample differs from
its own original in a way drawn at random, coarse or fine. Each pair of the two asks for a directional derivative of
the reward, which is what the generator will follow. LaSRO (arXiv 2411.15247) explores by noises and number of steps
alone.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

GRIDS = (1, 2, 4, 8)
"""Random values a side, of the fields that are added up: from a shift of all to blots of an eighth of the width."""


def smooth_noise(shape_BCHW: Sequence[int], generator: torch.Generator) -> Tensor:
    """[B, C, H, W] float32, of root mean square 1 for each sample: a sum of coarse to fine fields of random weights."""
    B, C, H, W = shape_BCHW
    total_BCHW = torch.zeros(B, C, H, W)
    for grid in GRIDS:
        weight_B111 = torch.rand(B, 1, 1, 1, generator=generator)
        field = torch.randn(B, C, min(grid, H), min(grid, W), generator=generator) * weight_B111
        total_BCHW += interpolate(field, size=(H, W), mode="bilinear", align_corners=False)
    return total_BCHW / total_BCHW.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)


def perturb(z_BCHW: Tensor, noise_BCHW: Tensor, sizes_B: Tensor) -> Tensor:
    """z + size * std(z) * noise: `sizes_B` are in standard deviations of each sample's own values."""
    scale_B = sizes_B * z_BCHW.std((1, 2, 3))
    return z_BCHW + scale_B[:, None, None, None] * noise_BCHW
