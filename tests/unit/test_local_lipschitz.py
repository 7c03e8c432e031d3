"""Slopes of maps that are known by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lasro.functional.local_lipschitz import (
    random_directions,
    root_mean_square,
    slope_along_gradient,
    slopes,
    steepest_slope,
)


def test_slopes_by_hand() -> None:
    """Guards against Euclidean norms, and against the step counted twice. G(x) = (2 x0, 4 x1, 0, 0) at x = (1, 1)."""
    at_x = torch.tensor([2.0, 4.0, 0.0, 0.0], dtype=torch.float64)
    moved = torch.tensor(
        [[3.0, 6.0, 0.0, 0.0], [2.0, 4.0, 0.0, 0.0]], dtype=torch.float64
    )  # delta u = (1/2, 1/2) and 0
    assert slopes(at_x, moved, delta=0.5).tolist() == pytest.approx([math.sqrt((1 + 4) / 4) / 0.5, 0.0])
    assert root_mean_square(torch.tensor([3.0, 4.0])) == pytest.approx(math.sqrt(12.5))


def test_directions_are_of_length_one_and_repeat() -> None:
    """Guards against directions of other lengths, which would count as slopes."""
    u_DCHW, again = (random_directions(5, (2, 3, 4), torch.Generator().manual_seed(1)) for _ in range(2))
    assert u_DCHW.shape == (5, 2, 3, 4)
    assert torch.equal(u_DCHW, again)
    assert [root_mean_square(u) for u in u_DCHW] == pytest.approx([1.0] * 5)


def test_the_slope_along_a_gradient_is_the_steepest() -> None:
    """Bug: sqrt(d) left out. r(x) = 3 x0 + 4 x1 is steepest along sqrt(2) (3, 4) / 5, whose length is 1."""
    gradient = torch.tensor([3.0, 4.0], dtype=torch.float64)
    u = math.sqrt(2) * gradient / 5
    assert root_mean_square(u) == pytest.approx(1.0)
    along = slopes(torch.zeros(1, dtype=torch.float64), 0.1 * (u @ gradient).reshape(1, 1), 0.1).item()
    assert slope_along_gradient(gradient) == pytest.approx(5 * math.sqrt(2))
    assert along == pytest.approx(5 * math.sqrt(2))


def test_the_steepest_slope_is_known_from_random_directions() -> None:
    """Bug: the mean in place of the mean square, which falls short by sqrt(2 / pi)."""
    generator = torch.Generator().manual_seed(2)
    gradient = torch.randn(8, generator=generator, dtype=torch.float64)
    u_D = random_directions(40_000, (8,), generator).double()
    found = slopes(torch.zeros(1), (u_D @ gradient)[:, None], 1.0)
    assert steepest_slope(found, 8) == pytest.approx(slope_along_gradient(gradient), rel=0.02)


def test_gradients_agree_with_finite_differences() -> None:
    """Guards against a gradient of something else than what is moved."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)

    def r(v: torch.Tensor) -> torch.Tensor:
        return v.sin().sum(-1) + v[..., 0] * v[..., 1]

    (gradient,) = torch.autograd.grad(r(x), x)
    u = gradient / root_mean_square(gradient)
    with torch.no_grad():
        along = slopes(r(x)[None], r(x + 1e-6 * u)[None, None], 1e-6).item()
    assert along == pytest.approx(slope_along_gradient(gradient), rel=1e-4)
