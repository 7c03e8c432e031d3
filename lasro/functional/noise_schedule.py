"""The forward diffusion process and what a network's output says of it: pure functions of tensors.

    x_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps

x_t a noisy latent, z a clean one, eps noise, abar_t the product of alphas up to t. `abar` broadcasts against BCHW: a
scalar, or B111. Source: DDPM (Ho et al., arXiv 2006.11239); timesteps of LCM (Luo et al., arXiv 2310.04378).
"""

from __future__ import annotations

import torch
from torch import Tensor


def lcm_timesteps(num_steps: int, num_train_timesteps: int = 1000, original_steps: int = 50) -> list[int]:
    """Timesteps of `num_steps` consistency steps, largest first: [999], [999, 499], [999, 759, 499, 259]."""
    if not 1 <= num_steps <= original_steps:
        raise ValueError(f"num_steps: got {num_steps}, expected 1 to {original_steps}")
    stride = num_train_timesteps // original_steps
    schedule = [stride * (i + 1) - 1 for i in reversed(range(original_steps))]
    return [schedule[i * original_steps // num_steps] for i in range(num_steps)]


def solver_pairs(original_steps: int) -> tuple[Tensor, Tensor]:
    """Timesteps t and s of the steps of a distillation's solver, int64 [original_steps], the cleanest first.

    Of 50 steps t is 19, 39, ... 999, and s the t before it, at first 0, as in diffusers' LCM distillation.
    """
    t_N = torch.tensor(lcm_timesteps(original_steps, original_steps=original_steps)[::-1])
    return t_N, torch.cat([torch.zeros_like(t_N[:1]), t_N[:-1]])


def add_noise(z: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps."""
    return abar.sqrt() * z + (1 - abar).sqrt() * noise


def ddim_step(z: Tensor, noise: Tensor, abar_previous: Tensor) -> Tensor:
    """One deterministic DDIM step to an earlier timestep."""
    return add_noise(z, noise, abar_previous)


def clean_from_output(output: Tensor, x_t: Tensor, abar: Tensor, prediction_type: str = "epsilon") -> Tensor:
    """The z that a network's output stands for. `prediction_type`: epsilon, v_prediction or sample."""
    if prediction_type == "epsilon":
        return (x_t - (1 - abar).sqrt() * output) / abar.sqrt()
    if prediction_type == "v_prediction":
        return abar.sqrt() * x_t - (1 - abar).sqrt() * output
    if prediction_type == "sample":
        return output
    raise ValueError(f"prediction_type: got {prediction_type}, expected epsilon, v_prediction or sample")


def noise_from_output(output: Tensor, x_t: Tensor, abar: Tensor, prediction_type: str = "epsilon") -> Tensor:
    """The eps that a network's output stands for."""
    if prediction_type == "epsilon":
        return output
    if prediction_type == "v_prediction":
        return abar.sqrt() * output + (1 - abar).sqrt() * x_t
    z = clean_from_output(output, x_t, abar, prediction_type)
    return (x_t - abar.sqrt() * z) / (1 - abar).sqrt()
