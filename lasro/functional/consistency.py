"""Consistency sampling in one, two or more steps: pure functions of tensors.

Notation of the paper: x_t a noisy latent, z a clean one, eps noise, abar_t the product of alphas up to t,
f_theta(x_t, t, c) the consistency model's clean prediction. Two steps are tau_0 = 999 and tau_1 = 499.

Shape legend: B batch, C channels, H height, W width. `abar` broadcasts against BCHW: a scalar, or B111.
Source: LCM (Luo et al., arXiv 2310.04378); two-step notation of LaSRO (Jia et al., arXiv 2411.15247).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def boundary_scalings(
    timestep: Tensor, timestep_scaling: float = 10.0, sigma_data: float = 0.5
) -> tuple[Tensor, Tensor]:
    """c_skip and c_out with c_skip(0) = 1 and c_out(0) = 0, so that f_theta(x_0, 0) = x_0 (LCM, section 3)."""
    s = timestep * timestep_scaling
    return sigma_data**2 / (s**2 + sigma_data**2), s / (s**2 + sigma_data**2).sqrt()


def consistency(z: Tensor, x_t: Tensor, c_skip: Tensor, c_out: Tensor) -> Tensor:
    """f_theta = c_skip x_t + c_out z."""
    return c_out * z + c_skip * x_t


class StepSample(NamedTuple):
    """One consistency step: its noisy input and the clean latents predicted from it, both [B, C, H, W]."""

    x_t_BCHW: Tensor
    z_BCHW: Tensor


def sample(
    predict_clean: Callable[[Tensor, int], Tensor],
    next_input: Callable[[Tensor, Tensor, Tensor, int], Tensor],
    noises: Sequence[Tensor],
    rows: Sequence[Tensor] | None = None,
) -> list[StepSample]:
    """Every step of consistency sampling; the last z is the sample, nothing is noised after it.

    `predict_clean(x_t, i)` is f_theta of step i with the prompt bound, `next_input(x_t, z, eps, i)` makes that step's
    input from the input and the prediction of the step before. `noises` [B, C, H, W] are x_tau0, then one draw per
    later step. For two steps of an LCM: z1 = f(x_tau0), x_tau1 = sqrt(abar) z1 + sqrt(1 - abar) eps, z2 = f(x_tau1).
    `rows`, where given, says for each later step which rows of the step before it go on, int64; its noise has one row
    for each of them. Gradients flow within each step, not from one into the next: z1 enters the second step as a
    constant. That is our choice, not the paper's: the chain through both would multiply the slopes of two steep maps.
    """
    x_t, steps = noises[0], []
    for i in range(len(noises)):
        if i > 0:
            before = (steps[-1].x_t_BCHW.detach(), steps[-1].z_BCHW.detach())
            x_t, z = before if rows is None else (part[rows[i - 1]] for part in before)
            x_t = next_input(x_t, z, noises[i], i)
        steps.append(StepSample(x_t, predict_clean(x_t, i)))
    return steps


def guidance_embedding(guidance_B: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding [B, dim] of w - 1 in thousandths, through which an LCM takes its guidance scale w."""
    half = dim // 2
    frequencies = torch.exp(
        torch.arange(half, dtype=guidance_B.dtype, device=guidance_B.device)
        * -(torch.log(torch.tensor(10000.0, dtype=guidance_B.dtype)) / (half - 1))
    )
    angles = (guidance_B - 1)[:, None] * 1000 * frequencies[None]
    embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(embedding, (0, dim % 2))
