"""Policy gradients in float64, against numbers by hand and a reward whose gradient is known."""

from __future__ import annotations

import math

import pytest
import torch

from lasro.functional.policy_gradient import advantages, clipped_ratio_loss, log_probability, rebel_loss

F64 = torch.float64
ABAR = 0.3
SIGMA = math.sqrt(1 - ABAR)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def test_log_probability_by_hand() -> None:
    """Guards against the density's sum where the clip of 1e-4 is made for the mean: -(4 + 16) / 2 / 0.5 = -20."""
    action, mean = tensor(3, 1).view(1, 1, 1, 2), tensor(1, 5).view(1, 1, 1, 2)
    assert log_probability(action, mean, 0.5).item() == pytest.approx(-20)


def test_the_score_function_has_the_gradient_of_the_formula() -> None:
    """Guards against a sign: d/dz of -A log pi(a) is -A sqrt(abar) (a - sqrt(abar) z) / (sigma^2 CHW)."""
    z, a, A = normal(3, 2, 2, 2).requires_grad_(), normal(3, 2, 2, 2, seed=1), tensor(1.5, -2.0, 0.0)
    log_pi = log_probability(a, math.sqrt(ABAR) * z, SIGMA)
    expected = -A.view(3, 1, 1, 1) * math.sqrt(ABAR) * (a - math.sqrt(ABAR) * z) / (SIGMA**2 * 8)
    for clip in (math.inf, 1e-4):  # at a ratio of 1 PPO is the score function
        loss = clipped_ratio_loss(log_pi, log_pi.detach(), A, clip).sum()
        (gradient,) = torch.autograd.grad(loss, z, retain_graph=True)
        torch.testing.assert_close(gradient, expected.detach())


@pytest.mark.parametrize("kind", ["linear", "random"])
def test_the_mean_of_advantage_times_score_is_the_gradient_of_the_mean_reward(kind: str) -> None:
    """Guards against a biased estimator. For r = <v, a> the mean of r d log pi / dz over eps is sqrt(abar) v / CHW, in
    each number within 4.5 standard errors; a reward that knows nothing of a gives 0."""
    draws, shape = 20_000, (1, 2, 2)
    z, v, eps = normal(1, *shape).requires_grad_(), normal(1, *shape, seed=1), normal(draws, *shape, seed=2)
    mean = math.sqrt(ABAR) * z.expand(draws, *shape)
    a = mean.detach() + SIGMA * eps
    r = (v * a).sum((1, 2, 3)) if kind == "linear" else normal(draws, seed=3)
    score = math.sqrt(ABAR) * (a - mean.detach()) / (SIGMA**2 * 4)  # of each draw, as the test before says
    (gradient,) = torch.autograd.grad((r * log_probability(a, mean, SIGMA)).mean(), z)
    each = r.view(-1, 1, 1, 1) * score
    torch.testing.assert_close(gradient, each.mean(0, keepdim=True))
    expected = math.sqrt(ABAR) * v / 4 if kind == "linear" else torch.zeros_like(v)
    assert ((gradient - expected).abs() < 4.5 * each.std(0) / math.sqrt(draws)).all()


def test_a_ratio_beyond_its_clip_gives_a_gradient_only_back() -> None:
    """Guards against a clip that is lost in one direction: ratios of e^0.1 and e^-0.1, advantages of both signs."""
    log_pi = tensor(0.1, 0.1, -0.1, -0.1).requires_grad_()
    losses = clipped_ratio_loss(log_pi, tensor(0, 0, 0, 0), tensor(1, -1, 1, -1), 0.05)
    assert losses.tolist() == pytest.approx([-1.05, math.exp(0.1), -math.exp(-0.1), 0.95])
    (gradient,) = torch.autograd.grad(losses.sum(), log_pi)
    assert gradient.tolist() == pytest.approx([0, math.exp(0.1), -math.exp(-0.1), 0])


def test_advantages_by_hand() -> None:
    """Guards against another prompt's mean where a prompt has samples enough, and the round's where it has not.

    Prompt 1: 1, 3 (mean 2, deviation sqrt 2); prompt 2: 10, 10. Together: mean 6, squares 25, 9, 16, 16, deviation
    sqrt(66 / 3).
    """
    totals = tensor(1, 3, 10, 10).view(2, 2, 1)
    own = advantages(totals, prompt_samples=2)
    assert own.flatten().tolist() == pytest.approx([-1 / math.sqrt(2), 1 / math.sqrt(2), 0, 0])
    of_all = advantages(totals, prompt_samples=3)
    assert of_all.flatten().tolist() == pytest.approx([each / math.sqrt(22) for each in (-5, -3, 4, 4)])
    clipped = advantages(totals, prompt_samples=3, clip=0.7).flatten().tolist()
    assert clipped == pytest.approx([-0.7, -3 / math.sqrt(22), 0.7, 0.7])


def test_advantages_within_a_noise_ignore_what_its_draws_share() -> None:
    """Guards against the state's own reward in the advantage: three quarters of its variance is that. Two first noises
    of 0 and 100, draws of -1 and 1 around each: deviation sqrt(4 / 2)."""
    totals = tensor(-1, 1, 99, 101).view(1, 2, 2)
    within = advantages(totals, prompt_samples=2, within_noise=True)
    assert within.flatten().tolist() == pytest.approx([each / math.sqrt(2) for each in (-1, 1, -1, 1)])


def test_failed_and_equal_totals_have_no_advantage() -> None:
    """Guards against a failed reward that counts as a number, a division by no deviation, and rounding that counts."""
    failed = advantages(tensor(1, math.nan, 3, math.nan).view(1, 4, 1), prompt_samples=2)
    assert failed.flatten().tolist() == pytest.approx([-1 / math.sqrt(2), 0, 1 / math.sqrt(2), 0])
    for totals in (tensor(5, 5, 5, 5 + 1e-12), tensor(math.nan, math.nan, math.nan, 1)):
        assert not advantages(totals.view(1, 2, 2), 2).any()
        assert not advantages(totals.view(1, 2, 2), 2, within_noise=True).any()


def test_rebel_by_hand_and_its_gradient_at_the_start() -> None:
    """Guards against a scale that eta changes: at the start the gradient of a pair is -(A_i - A_j) (e_i - e_j)."""
    first, second = torch.tensor([0]), torch.tensor([1])
    log_rho = tensor(0.03, 0.01).requires_grad_()
    (loss,) = rebel_loss(log_rho, tensor(2, 1), first, second, eta=0.01)
    assert loss.item() == pytest.approx(0.005 * (2 - 1) ** 2)
    for eta in (1e-4, 1.0):
        start = tensor(0, 0).requires_grad_()
        (gradient,) = torch.autograd.grad(rebel_loss(start, tensor(2, 0.5), first, second, eta).sum(), start)
        assert gradient.tolist() == pytest.approx([-1.5, 1.5])
    (at_optimum,) = rebel_loss(tensor(0.02, 0.01), tensor(2, 1), first, second, eta=0.01)
    assert at_optimum.item() == pytest.approx(0, abs=1e-12)


def test_losses_pass_gradcheck() -> None:
    """Guards against a formula whose gradient is not that of its value."""
    log_pi, A = tensor(0.01, -0.2, 0.3).requires_grad_(), tensor(1, -2, 0.5)
    pairs = torch.tensor([0, 1]), torch.tensor([2, 0])
    assert torch.autograd.gradcheck(lambda x: clipped_ratio_loss(x, tensor(0, 0, 0), A, 0.1), (log_pi,))
    assert torch.autograd.gradcheck(lambda x: rebel_loss(x, A, *pairs, 0.1), (log_pi,))
    mean = normal(2, 1, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: log_probability(normal(2, 1, 2, 2, seed=1), m, SIGMA), (mean,))
