"""The generator's objective, in float64, by hand."""

from __future__ import annotations

import pytest
import torch

from lasro.functional.generator_loss import (
    ema_update,
    guided,
    lcm_distillation,
    pseudo_huber,
    score_ascent,
    stay_near_base,
)
from lasro.functional.noise_schedule import solver_pairs
from lasro.functional.score_normalisation import Scale, normalise_and_clip

F64 = torch.float64


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def test_ascent_term_and_gradient_by_hand() -> None:
    """Guards against a wrong sign or a forgotten 1/B: -w mean S, and -w / (B sigma) dR/dz inside the clip, else 0.

    w = 0.5, B = 2, sigma = 2, scores 3 and 9 with mean 1: S = 1 and 3 (clipped); the term is -0.5 * 2 = -1.
    """
    slope = torch.ones(2, 1, 1, 1, dtype=F64)
    slope[0] = 8.0
    term, gradient = score_ascent(tensor(3, 9), slope, Scale(1.0, 2.0, 3.0), 0.5)
    assert term.item() == pytest.approx(-1.0)
    assert gradient.flatten().tolist() == pytest.approx([-0.5 / (2 * 2) * 8.0, 0.0])


def test_ascent_gradient_is_that_of_the_whole_term() -> None:
    """Guards against the two modes differing: given dR/dz, the gradient equals autograd through R itself."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4, 2, 3, 3, dtype=F64, generator=generator).requires_grad_()
    weight = torch.randn(2, 3, 3, dtype=F64, generator=generator)
    scale = Scale(0.1, 1.7, 0.5)
    scores = (z * weight).sum((1, 2, 3)).tanh()
    (slope,) = torch.autograd.grad(scores.sum(), z, retain_graph=True)
    (expected,) = torch.autograd.grad(-0.3 * normalise_and_clip(scores, scale).mean(), z)
    _, gradient = score_ascent(scores.detach(), slope, scale, 0.3)
    torch.testing.assert_close(gradient, expected)


def test_stay_near_base_by_hand() -> None:
    """Guards against a sum where the mean over a step's samples is meant: mean(1, 9) = 5."""
    assert stay_near_base(tensor(1, 3), tensor(0, 0)).item() == pytest.approx(5.0)


def test_regularisers_pass_gradcheck() -> None:
    """Guards against a formula whose gradient is not that of its value."""
    a = torch.randn(3, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    base = tensor(0.1, 0.2, 0.3)
    assert torch.autograd.gradcheck(lambda x: stay_near_base(x, base), (a,))
    assert torch.autograd.gradcheck(lambda x: pseudo_huber(x, base, c=0.1), (a,))


def test_pseudo_huber_by_hand() -> None:
    """Guards against forgetting to subtract c: sqrt(9 + 16) - 4 = 1."""
    assert pseudo_huber(tensor(3), tensor(0), c=4.0).item() == pytest.approx(1.0)


def test_guidance_by_hand() -> None:
    """Guards against u and c swapped: 1 + 4 (3 - 1) = 9."""
    assert guided(tensor(3), tensor(1), tensor(4)).item() == 9.0


def test_lcm_loss_by_hand() -> None:
    """Guards against stepping the teacher with the wrong alpha or guiding only one of z and eps.

    z = 1, eps = 2, abar_t = 0.36: x_t = 0.6 + 1.6 = 2.2. The teacher says eps 2 with and 1 without the prompt,
    w = 2: eps_hat = 3, z_hat = (2.2 - 0.8 * 3) / 0.6 = -1/3. abar_s = 0.64: x_s = 0.8 * (-1/3) + 0.6 * 3 = 23/15.
    With f(x, t) = 2x: 4.4 against 46/15, so the loss is 4/3 up to c.
    """
    alphas = torch.ones(1000, dtype=F64)
    alphas[700], alphas[500] = 0.36, 0.64
    theta = torch.tensor(2.0, dtype=F64, requires_grad=True)
    loss = lcm_distillation(
        tensor(1),
        tensor(2),
        torch.tensor([700]),
        torch.tensor([500]),
        torch.tensor(2.0, dtype=F64),
        lambda x, t: theta * x,
        lambda x, t: (torch.full_like(x, 2.0), torch.full_like(x, 1.0)),
        alphas,
    )
    assert loss.item() == pytest.approx(4 / 3, abs=2e-3)
    loss.backward()
    assert theta.grad is not None
    assert theta.grad.item() == pytest.approx(2.2, abs=1e-4), "the target must carry no gradient"


def test_lcm_loss_holds_a_constant_f_to_the_boundary() -> None:
    """Bug: pairs ended at timestep 19, and an f that is the same everywhere had no loss. At s = 0 the target is x_0.

    z = 3, eps = 0, abar_19 = 0.64, abar_0 = 1: x_19 = 2.4, the teacher's eps is 0, x_0 = 3. f = 0 but f(x, 0) = x.
    """
    alphas = torch.ones(1000, dtype=F64)
    alphas[19], alphas[39] = 0.64, 0.36

    def loss(t: int, s: int) -> float:
        return lcm_distillation(
            tensor(3).reshape(1, 1, 1, 1),
            torch.zeros(1, 1, 1, 1, dtype=F64),
            torch.tensor([t]),
            torch.tensor([s]),
            torch.tensor(2.0, dtype=F64),
            lambda x, t_B: x * (t_B == 0),
            lambda x, t_B: (torch.zeros_like(x), torch.zeros_like(x)),
            alphas,
        ).item()

    assert loss(19, 0) == pytest.approx(3.0, abs=2e-3)
    assert loss(39, 19) == 0.0


def test_solver_pairs_by_hand() -> None:
    """Guards against a solver that starts at 0 or skips its first step: t = 19 goes to 0, 999 to 979."""
    t_N, s_N = solver_pairs(50)
    assert len(t_N) == len(s_N) == 50
    assert (t_N[:3].tolist(), s_N[:3].tolist()) == ([19, 39, 59], [0, 19, 39])
    assert (t_N[-1].item(), s_N[-1].item()) == (999, 979)


def test_average_by_hand() -> None:
    """Guards against decay and its complement swapped: 0.9 * 1 + 0.1 * 2 = 1.1."""
    average = [tensor(1.0)]
    ema_update(average, [tensor(2.0)], 0.9)
    assert average[0].item() == pytest.approx(1.1)
