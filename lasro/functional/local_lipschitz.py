"""How steep a map is around a point, by finite differences: pure functions of tensors.

    s(u) = |G(x + delta u) - G(x)| / delta,    |v| = sqrt(mean v^2),    |u| = 1

u is a random direction and s(u) the slope along it: a slope of 2 makes a small change of x twice as large in G(x).
Every slope is a lower bound of the local Lipschitz constant of G at x, the mean over directions says what random noise
meets. Norms are root mean squares, so that the size of images plays no part: between spaces of as many numbers, such
as from latents to latents, slopes are those of Euclidean norms; from d to m numbers Euclidean ones are sqrt(m / d)
times as large.

For a number r(x), such as a reward, the steepest of all directions is known from random ones too. With the gradient g,
s(u) = |<g, u>| and mean s^2 = mean over u of <g, u>^2 = sum g^2, so the steepest slope is sqrt(d sum g^2) =
sqrt(d mean s^2).

LaSRO (Jia et al., arXiv 2411.15247, figure 2) names the local Lipschitz constant of few-step generators as what makes
policy gradients noisy. The estimate here is ours.

Shape legend: D directions; behind it x's or G(x)'s own dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def root_mean_square(v: Tensor) -> float:
    """|v|, of all elements, in float64."""
    return v.double().square().mean().sqrt().item()


def random_directions(count: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """u [D, *shape], float32 on the CPU: uniform on the sphere |u| = 1."""
    normal = torch.randn(count, *shape, generator=generator)
    return normal / normal.flatten(1).square().mean(1).sqrt().reshape(-1, *[1] * len(shape))


def slopes(at_x: Tensor, moved: Tensor, delta: float) -> Tensor:
    """s(u) float64 [D] along D directions, from G(x) [...] and G(x + delta u) [D, ...], of numbers or of tensors."""
    difference = moved.double() - at_x.double()
    return difference.reshape(len(moved), -1).square().mean(1).sqrt() / delta


def steepest_slope(slopes_D: Tensor, d: int) -> float:
    """sqrt(d mean s^2): along the gradient of a number that depends on d others, from its slopes along random ones.

    Its square is unbiased where the number is linear within delta. Of a map to many numbers it is no slope.
    """
    return math.sqrt(d * slopes_D.double().square().mean().item())


def slope_along_gradient(gradient: Tensor) -> float:
    """sqrt(d sum g^2): the same from the gradient g, of d numbers."""
    return math.sqrt(gradient.numel() * gradient.double().square().sum().item())
