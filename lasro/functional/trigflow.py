"""TrigFlow: the forward process of SANA-Sprint, and its network's flow-matching output in these terms. Pure functions.

    x_t = cos(t) z + sin(t) eps,    z = cos(t) x_t - sin(t) F

x_t a noisy latent, z a clean one, eps noise, t an angle from 0 (clean) to pi / 2 (noise), F = d x_t / d t. Latents have
unit scale: those of the papers are sigma_d times as large, in all terms, so it cancels. `t` broadcasts against BCHW.
Source: Lu and Song, arXiv 2410.11081; the change from flow matching is SANA-Sprint's (Chen et al., arXiv 2503.09641).
"""

from __future__ import annotations

from torch import Tensor


def add_trigflow_noise(z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = cos(t) z + sin(t) eps."""
    return t.cos() * z + t.sin() * noise


def clean_from_trigflow(F: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
    """z = cos(t) x_t - sin(t) F."""
    return t.cos() * x_t - t.sin() * F


def flow_level(t: Tensor) -> Tensor:
    """The sigma of flow matching with the signal-to-noise ratio of t: sigma / (1 - sigma) = tan(t)."""
    return t.sin() / (t.cos() + t.sin())


def flow_input(x_t: Tensor, sigma: Tensor) -> Tensor:
    """x_sigma of flow matching from x_t: the same mixture, scaled by sqrt(sigma^2 + (1 - sigma)^2)."""
    return x_t * _scale(sigma)


def trigflow_output(velocity: Tensor, x_sigma: Tensor, sigma: Tensor) -> Tensor:
    """F from the velocity that a network of flow matching gives at x_sigma."""
    return ((1 - 2 * sigma) * x_sigma + (1 - 2 * sigma + 2 * sigma**2) * velocity) / _scale(sigma)


def _scale(sigma: Tensor) -> Tensor:
    return (sigma**2 + (1 - sigma) ** 2).sqrt()
