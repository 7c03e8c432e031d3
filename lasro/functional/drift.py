"""How far a generator moved from its base, in distances between prompts: pure functions.

    distance = sqrt( mean_i |a_i - b_i|^2 / mean_{i != j} |b_i - b_j|^2 )

b_i is the base's sample of prompt i, a_i the adapted generator's of the same prompt and noise; |.|^2 is the mean
square over elements, of images or of latents. 0: unchanged. 1: as far from the base's sample as the base's sample of
another prompt, so that nothing of the prompt need be left. Twice as large a change has twice the distance.

Distances between two noises are the other yardstick. They depend on how alike the base draws one prompt, so the same
number may be hardly visible for one set of prompts and a loss for another.

Shape legend: N, M samples, behind which come their elements: images or latents of any one shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import fsum, sqrt

import torch
from torch import Tensor


def mean_square_difference(a: Tensor, b: Tensor) -> float:
    """mean (a - b)^2 of two samples of one shape, in the square of their unit. Raises ValueError for two shapes."""
    if a.shape != b.shape:
        raise ValueError(f"samples of {list(a.shape)} and {list(b.shape)}, expected the same shape")
    return (a.double() - b.double()).square().mean().item()


def mean_square_between(samples: Iterable[Tensor]) -> float | None:
    """mean_{i != j} |b_i - b_j|^2 over all pairs of N samples of one shape, read once; None below two.

    It is twice the unbiased variance over samples: 2 (sum |b_i|^2 - |sum b_i|^2 / N) / (N - 1), so no pair is formed.
    """
    count, total, squares = 0, torch.zeros((), dtype=torch.float64), 0.0
    for sample in samples:
        values = sample.double().cpu()
        count, total, squares = count + 1, total + values, squares + values.square().mean().item()
    if count < 2:
        return None
    return max(0.0, 2 * (squares - total.square().mean().item() / count) / (count - 1))


def drift_distance(moved_N: Sequence[float], unit: float | None) -> tuple[float | None, float | None]:
    """sqrt(mean(moved) / unit) and its standard error over prompts, from mean squares to the base.

    `unit` is the mean square that counts as 1. The error is that of the numerator, by the delta method, since the unit
    is the same for every generator compared on these prompts. Neither is known without a unit above 0; the error not
    for one prompt, and it is 0 where nothing moved.
    """
    if not moved_N or not unit:
        return None, None
    n = len(moved_N)
    mean = fsum(moved_N) / n
    distance = sqrt(mean / unit)
    if n == 1:
        return distance, None
    if mean == 0:
        return 0.0, 0.0
    variance = fsum((moved - mean) ** 2 for moved in moved_N) / (n - 1)
    return distance, sqrt(variance / n) / (2 * unit * distance)
