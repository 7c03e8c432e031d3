"""Consistency sampling in one, two or more steps, and truncated gradients through them: pure functions of tensors.

Notation of the paper: x_t a noisy latent, z a clean one, eps noise, abar_t the product of alphas up to t,
f_theta(x_t, t, c) the consistency model's clean prediction. Two steps are tau_0 = 999 and tau_1 = 499.

Shape legend: B batch, C channels, H height, W width. `abar` broadcasts against BCHW: a scalar, or B111.
Source: LCM (Luo et al., arXiv 2310.04378); two-step notation of LaSRO (Jia et al., arXiv 2411.15247).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

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


Step = TypeVar("Step", bound=Hashable)


def sample(
    predict_clean: Callable[[Tensor, Step], Tensor],
    first_input: Callable[[Tensor, Step], Tensor],
    next_input: Callable[[Tensor, Tensor, Tensor, Step, Step], Tensor],
    noises: Sequence[Tensor],
    schedules: Sequence[Sequence[Step]],
    gradient_steps: int = 1,
    rows: Tensor | None = None,
) -> list[list[StepSample]]:
    """Every step of each of these schedules, shorter ones first; the last z of each is a sample.

    `predict_clean(x_t, step)` is f_theta with the prompt bound, `first_input(eps, step)` a first step's input and
    `next_input(x_t, z, eps, step, next_step)` that of a later one, from input and prediction of the step before it.
    `noises` [B, C, H, W] are x_tau0, then one draw per later step. For two steps of an LCM: z1 = f(x_tau0),
    x_tau1 = sqrt(abar) z1 + sqrt(1 - abar) eps, z2 = f(x_tau1). Schedules share the steps that they begin with, each
    taken once. `rows`, where given, says which rows of a first step go on, int64; later noises have one row for each.

    Gradients flow through the last `gradient_steps` of each schedule, and what is before them is a constant (DRaFT-K,
    Clark et al., arXiv 2309.17400). With 1 they flow within each step, not from one into the next: that is our choice,
    not the paper's, since the chain through several would multiply the slopes of as many steep maps.
    """
    taken: dict[tuple[tuple[Step, ...], int], StepSample] = {}

    def take(path: tuple[Step, ...], first: int) -> StepSample:
        """The last step of `path`, with a gradient from step `first` of it on."""
        if (path, first) not in taken:
            i = len(path) - 1
            if i == 0:
                x_t = first_input(noises[0], path[0])
            else:
                x_t, z = take(path[:-1], first) if i > first else constant(path[:-1])
                if rows is not None and i == 1:
                    x_t, z = x_t[rows], z[rows]
                x_t = next_input(x_t, z, noises[i], path[-2], path[-1])
            taken[path, first] = StepSample(x_t, predict_clean(x_t, path[-1]))
        return taken[path, first]

    def constant(path: tuple[Step, ...]) -> StepSample:
        """The same without a gradient; the one that another schedule has trained already, where there is one."""
        known = next((each for (other, _), each in taken.items() if other == path), None)
        if known is None:
            with torch.no_grad():
                known = take(path, len(path))
        return StepSample(*(part.detach() for part in known))

    found = []
    for path in map(tuple, schedules):
        first = max(0, len(path) - gradient_steps)
        last = take(path, first)
        before = (path[: i + 1] for i in range(len(path) - 1))
        found.append([*(taken.get((each, first)) or constant(each) for each in before), last])
    return found


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
