"""Flow matching: the forward process, what a network's velocity says of it, and Euler's step. Pure functions.

    x_sigma = (1 - sigma) z + sigma eps,    v = d x / d sigma = eps - z

x_sigma a noisy latent, z a clean one, eps noise, sigma the noise level, 0 (clean) to 1 (noise). `sigma` broadcasts
against BCHW: a scalar, or B111. Source: Lipman et al., arXiv 2210.02747; as diffusers' FlowMatchEulerDiscreteScheduler.
"""

from __future__ import annotations

from torch import Tensor


def add_flow_noise(z: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_sigma = (1 - sigma) z + sigma eps."""
    return (1 - sigma) * z + sigma * noise


def clean_from_velocity(velocity: Tensor, x_sigma: Tensor, sigma: Tensor) -> Tensor:
    """z = x_sigma - sigma v: where Euler's step to sigma 0 ends."""
    return x_sigma - sigma * velocity


def euler_step(x_sigma: Tensor, z: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """x_sigma' = x_sigma + (sigma' - sigma) v with v = (x_sigma - z) / sigma; no noise is added."""
    return x_sigma + (next_sigma - sigma) * (x_sigma - z) / sigma
