"""Steps along a diffusion trajectory: hand-computed numbers, and Euler's method in its own coordinates."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lasro.functional.trajectory import abar_of_sigma, ddim_noise, mix, noisy_step, tcd_noise, unmix


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("abar_end", [1.0, 0.64])
def test_what_was_mixed_comes_apart_again(abar_end: float) -> None:
    """Guards against a step that goes on from other clean latents or another noise than were predicted.

    x_0 = 1, eps = 2: 0.6 * 1 + 0.8 * 2 = 2.2 at abar = 0.36, and 0.8 * 1 + 0.6 * 2 = 2.0 at 0.64.
    """
    x_t, z = mix(number(1), number(2), 0.36), mix(number(1), number(2), abar_end)
    assert x_t.item() == pytest.approx(2.2)
    assert z.item() == pytest.approx({1.0: 1.0, 0.64: 2.0}[abar_end])
    x_0, noise = unmix(x_t, z, 0.36, abar_end)
    assert (x_0.item(), noise.item()) == pytest.approx((1.0, 2.0))


@pytest.mark.parametrize(("std", "expected"), [(0.0, 2.0), (0.36, 0.8 + 0.48 * 2 + 0.36 * 3), (0.6, 2.6)])
def test_a_step_by_hand(std: float, expected: float) -> None:
    """Guards against noise on top of the old instead of in its place: x_0 = 1, eps_hat = 2, eps = 3 to abar = 0.64.

    sqrt(0.36 - 0.36^2) = 0.48 of the old noise is kept; at std = 0.6 none, and the step is consistency sampling's.
    """
    assert noisy_step(number(1), number(2), number(3), 0.64, std).item() == pytest.approx(expected)


def test_noise_by_hand() -> None:
    """Guards against a variance in place of its root, or s and t the other way round.

    ddim: sqrt(0.36 / 0.64 * (1 - 0.36 / 0.64)) = 0.49608; tcd: sqrt(1 - 0.36 / 0.64) = 0.66144.
    """
    assert ddim_noise(0.36, 0.64, 1.0) == pytest.approx(0.49608, abs=1e-5)
    assert ddim_noise(0.36, 0.64, 0.5) == pytest.approx(0.24804, abs=1e-5)
    assert ddim_noise(0.36, 0.64, 0.0) == 0.0
    assert tcd_noise(0.36, 0.64) == pytest.approx(0.66144, abs=1e-5)
    assert tcd_noise(0.36, 0.36) == 0.0
    assert abar_of_sigma(4 / 3) == pytest.approx(0.36)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_it_is_eulers_method(eta: float) -> None:
    """Guards against other samples than by sigma: from 4/3 to 0.75, x = 1 + 2 sigma, divided by sqrt(1 + sigma^2).

    The ancestral step ends at sigma_down and adds sigma_up of new noise, as in k-diffusion.
    """
    sigma, sigma_next = 4 / 3, 0.75
    sigma_up = eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
    sigma_down = (sigma_next**2 - sigma_up**2) ** 0.5
    x = 1 + 2 * sigma
    x_next = x + (x - 1) / sigma * (sigma_down - sigma) + sigma_up * 3
    abar, abar_next = abar_of_sigma(sigma), abar_of_sigma(sigma_next)
    found = noisy_step(number(1), number(2), number(3), abar_next, ddim_noise(abar, abar_next, eta))
    assert found.item() == pytest.approx(x_next / (1 + sigma_next**2) ** 0.5)


def test_formulas_pass_gradcheck() -> None:
    """Guards against a formula whose gradient is not that of its value, where a step is trained through."""
    draws = torch.Generator().manual_seed(0)
    x_t, z, noise = (torch.randn(1, 2, 2, 2, dtype=torch.float64, generator=draws).requires_grad_() for _ in "abc")

    def f(x_t: Tensor, z: Tensor, noise: Tensor) -> Tensor:
        return noisy_step(*unmix(x_t, z, 0.3, 0.99), noise, 0.6, 0.2)

    assert torch.autograd.gradcheck(f, (x_t, z, noise))
