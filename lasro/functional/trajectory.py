"""Steps along a diffusion trajectory, deterministic and with noise: pure functions of tensors.

    x_s = sqrt(abar_s) x_0 + sqrt(1 - abar_s - std^2) eps_hat + std eps

x_0 and eps_hat are what a network's output says of x_t, eps ~ N(0, I) is new. Samplers differ in std alone: 0 is DDIM
and, in other coordinates, Euler's method; `ddim_noise` at eta = 1 is DDPM and Euler's ancestral method; TCD has
`tcd_noise`. With std^2 = 1 - abar_s nothing of eps_hat is left: consistency sampling. `abar`: a product of alphas, a
float.

Source: DDIM (Song et al., arXiv 2010.02502, equations 12 and 16); TCD (Zheng et al., arXiv 2402.19159, algorithm 4).
"""

from __future__ import annotations

import math

from torch import Tensor


def abar_of_sigma(sigma: float) -> float:
    """abar of the noise level sigma = sqrt((1 - abar) / abar) that Euler's method counts in."""
    return 1 / (1 + sigma**2)


def mix(x_0: Tensor, noise: Tensor, abar: float) -> Tensor:
    """x_t = sqrt(abar) x_0 + sqrt(1 - abar) noise."""
    return math.sqrt(abar) * x_0 + math.sqrt(1 - abar) * noise


def unmix(x_t: Tensor, z: Tensor, abar_t: float, abar_end: float) -> tuple[Tensor, Tensor]:
    """x_0 and eps_hat of which x_t is the mixture at abar_t and z the one at abar_end > abar_t, 1 for a clean z."""
    clean_t, noise_t, clean_end, noise_end = (
        math.sqrt(share) for share in (abar_t, 1 - abar_t, abar_end, 1 - abar_end)
    )
    determinant = clean_end * noise_t - clean_t * noise_end
    x_0 = (noise_t * z - noise_end * x_t) / determinant
    noise = (clean_end * x_t - clean_t * z) / determinant
    return x_0, noise


def noisy_step(x_0: Tensor, noise_hat: Tensor, noise: Tensor, abar_s: float, std: float) -> Tensor:
    """x_s, of which `noise_hat` keeps what `std` leaves of the noise: 0 to sqrt(1 - abar_s)."""
    kept = math.sqrt(max(0.0, 1 - abar_s - std**2))
    x_s = math.sqrt(abar_s) * x_0 + kept * noise_hat
    return x_s if std == 0 else x_s + std * noise


def ddim_noise(abar_t: float, abar_s: float, eta: float) -> float:
    """std of a step from t to s < t: eta = 0 adds no noise, eta = 1 as much as DDPM."""
    return eta * math.sqrt((1 - abar_s) / (1 - abar_t) * (1 - abar_t / abar_s))


def tcd_noise(abar_s: float, abar_between: float) -> float:
    """std of a step down to a cleaner timestep, at `abar_between` >= abar_s, and diffused back to s from there."""
    return math.sqrt(1 - abar_s / abar_between)
