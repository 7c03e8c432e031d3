"""Consistency sampling in one, two or more steps: pure functions of tensors.

Notation of the paper: x_t a noisy latent, z a clean one, eps noise, abar_t the product of alphas up to t,
f_theta(x_t, t, c) the consistency model's clean prediction. Two steps are tau_0 = 999 and tau_1 = 499.

Shape legend: B batch, C channels, H height, W width. `abar` broadcasts against BCHW: a scalar, or B111.
Source: LCM (Luo et al., arXiv 2310.04378); two-step notation of LaSRO (Jia et al., arXiv 2411.15247).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def lcm_timesteps(num_steps: int, num_train_timesteps: int = 1000, original_steps: int = 50) -> list[int]:
    """Timesteps of `num_steps` consistency steps, largest first: [999], [999, 499], [999, 759, 499, 259]."""
    if not 1 <= num_steps <= original_steps:
        raise ValueError(f"num_steps: got {num_steps}, expected 1 to {original_steps}")
    stride = num_train_timesteps // original_steps
    schedule = [stride * (i + 1) - 1 for i in reversed(range(original_steps))]
    return [schedule[i * original_steps // num_steps] for i in range(num_steps)]


def boundary_scalings(
    timestep: Tensor, timestep_scaling: float = 10.0, sigma_data: float = 0.5
) -> tuple[Tensor, Tensor]:
    """c_skip and c_out with c_skip(0) = 1 and c_out(0) = 0, so that f_theta(x_0, 0) = x_0 (LCM, section 3)."""
    s = timestep * timestep_scaling
    return sigma_data**2 / (s**2 + sigma_data**2), s / (s**2 + sigma_data**2).sqrt()


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


def consistency(z: Tensor, x_t: Tensor, c_skip: Tensor, c_out: Tensor) -> Tensor:
    """f_theta = c_skip x_t + c_out z."""
    return c_out * z + c_skip * x_t


def add_noise(z: Tensor, noise: Tensor, abar: Tensor) -> Tensor:
    """x_t = sqrt(abar_t) z + sqrt(1 - abar_t) eps."""
    return abar.sqrt() * z + (1 - abar).sqrt() * noise


def ddim_step(z: Tensor, noise: Tensor, abar_previous: Tensor) -> Tensor:
    """One deterministic DDIM step to an earlier timestep."""
    return add_noise(z, noise, abar_previous)


def sample(
    predict_clean: Callable[[Tensor, int], Tensor],
    noises: Sequence[Tensor],
    timesteps: Sequence[int],
    alphas_cumprod_T: Tensor,
) -> list[Tensor]:
    """Clean latents after each consistency step; the last is the sample, nothing is noised after it.

    `predict_clean(x_t, t)` is f_theta with the prompt bound. `noises` [BCHW] are x_tau0, then one draw per
    later step. For two steps: z1 = f(x_999), x_499 = sqrt(abar) z1 + sqrt(1 - abar) eps, z2 = f(x_499).
    Gradients flow within each step, not through the re-noising: z1 enters the second step as a constant,
    because the chain through both steps is what makes two-step gradients explode (LaSRO, figure 2).
    """
    if len(noises) != len(timesteps):
        raise ValueError(f"noises: got {len(noises)}, expected one per timestep ({len(timesteps)})")
    x_t, latents = noises[0], []
    for step, timestep in enumerate(timesteps):
        latents.append(predict_clean(x_t, timestep))
        if step + 1 < len(timesteps):
            x_t = add_noise(latents[-1].detach(), noises[step + 1], alphas_cumprod_T[timesteps[step + 1]])
    return latents


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
