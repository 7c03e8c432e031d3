"""Losses of pairs in float64, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lasro.functional.noise_schedule import add_noise, noise_from_output
from lasro.functional.pairwise import clipped_log_ratio, denoising_gain, preference_loss

F64 = torch.float64


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_log_2_at_the_start_and_swapping_negates_its_gradient() -> None:
    """Guards against a reference that is not the base, and a winner that counts as the loser."""
    start = tensor(0, 0).requires_grad_()
    first, second = (preference_loss(start[:1], start[1:], 50.0), preference_loss(start[1:], start[:1], 50.0))
    assert first.item() == second.item() == pytest.approx(math.log(2))
    (a,), (b,) = (torch.autograd.grad(loss.sum(), start, retain_graph=True) for loss in (first, second))
    assert a.tolist() == pytest.approx([-25, 25])
    assert torch.equal(a, -b)


def test_beyond_the_clip_there_is_no_gradient() -> None:
    """Guards against a clip of the log in place of the ratio: 1 + 0.1 and 1 - 0.1 are +0.0953 and -0.1054."""
    log_pi = tensor(0.2, 0.05, -0.05, -0.2).requires_grad_()
    clipped = clipped_log_ratio(log_pi, tensor(0, 0, 0, 0), 0.1)
    assert clipped.tolist() == pytest.approx([math.log(1.1), 0.05, -0.05, math.log(0.9)])
    (gradient,) = torch.autograd.grad(clipped.sum(), log_pi)
    assert gradient.tolist() == [0, 1, 1, 0]


def test_denoising_gain_by_hand() -> None:
    """Guards against a swapped sign: the base is off by 2, the generator by 1; w (4 - 1) / 2 with w = 0.5."""
    z, f, f_base = (tensor(value).view(1, 1, 1, 1) for value in (0, 1, 2))
    gain = denoising_gain(z, f, f_base, tensor(0.5))
    assert gain.item() == pytest.approx(0.75)


def test_an_identical_pair_gives_no_gradient() -> None:
    """Guards against noises that differ within a pair: with one noise, equal samples cancel."""
    z, base = normal(1, 2, 2, 2), normal(1, 2, 2, 2, seed=1)
    f = normal(1, 2, 2, 2, seed=2).requires_grad_()
    gains = [denoising_gain(z, f, base, tensor(0.7)) for _ in range(2)]
    (gradient,) = torch.autograd.grad(preference_loss(gains[0], gains[1], 5000.0).sum(), f)
    assert not gradient.any()


def test_what_both_samples_gain_alike_changes_nothing() -> None:
    """Guards against a loss that sees more than the difference."""
    winners, losers = tensor(0.3, -0.1), tensor(0.1, 0.2)
    moved = preference_loss(winners + 7, losers + 7, 2.0)
    torch.testing.assert_close(moved, preference_loss(winners, losers, 2.0))


def test_the_loss_of_the_noise_is_that_of_the_latents_by_snr() -> None:
    """Guards against a weight of the wrong way round: |eps_hat - eps|^2 = abar / (1 - abar) |f - z|^2."""
    z, eps, f, abar = normal(1, 2, 3, 3), normal(1, 2, 3, 3, seed=1), normal(1, 2, 3, 3, seed=2), tensor(0.2)
    x_t = add_noise(z, eps, abar)
    eps_hat = noise_from_output(f, x_t, abar, "sample")
    of_noise = (eps_hat - eps).square().mean()
    gain = denoising_gain(z, f, z, abar / (1 - abar))  # of a base that predicts z itself
    assert gain.item() == pytest.approx(-of_noise.item() / 2)


def test_losses_pass_gradcheck() -> None:
    """Guards against a formula whose gradient is not that of its value."""
    a, b = tensor(0.02, -0.03).requires_grad_(), tensor(0.01, 0.04).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: preference_loss(x, y, 10.0), (a, b))
    assert torch.autograd.gradcheck(lambda x: clipped_log_ratio(x, tensor(0, 0), 0.1), (a,))
    f = normal(2, 1, 2, 2).requires_grad_()
    others = normal(2, 1, 2, 2, seed=1), normal(2, 1, 2, 2, seed=2)
    assert torch.autograd.gradcheck(lambda x: denoising_gain(others[0], x, others[1], tensor(0.5, 2.0)), (f,))
