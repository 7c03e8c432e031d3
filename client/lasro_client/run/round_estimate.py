"""A mean over rounds with its standard error. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

LEAST_ERROR = 1e-12
"""Of figures that do not vary at all, so that nothing is divided by it."""


Z = 2.576
"""Normal quantile of a chance of 1 in 200."""


def sure_errors(count: int) -> float:
    """Standard errors by which a mean of `count` values is above a value by chance once in 200 times.

    Student's quantile, by its expansion in the degrees of freedom (Abramowitz and Stegun, 26.7.5): the error of few
    values is itself a guess.
    """
    if count < 3:
        return math.inf
    nu = count - 1
    return Z + (Z**3 + Z) / (4 * nu) + (5 * Z**5 + 16 * Z**3 + 3 * Z) / (96 * nu**2)


class Estimate(NamedTuple):
    """A weighted mean over independent rounds and its standard error, infinite for fewer than two."""

    mean: float
    sem: float

    @classmethod
    def of(cls, values: Sequence[float], weights: Sequence[float] | None = None) -> Estimate:
        """`weights`: such as the pairs of each round, of which its accuracy is a mean; absent: all alike."""
        count, weights = len(values), weights or [1.0] * len(values)
        whole = math.fsum(weights)
        if not whole:
            return cls(0.0, math.inf)
        mean = math.fsum(weight * value for weight, value in zip(weights, values, strict=True)) / whole
        if count < 2:
            return cls(mean, math.inf)
        squares = math.fsum((weight * (value - mean)) ** 2 for weight, value in zip(weights, values, strict=True))
        return cls(mean, math.sqrt(squares * count / (count - 1)) / whole)

    def is_above(self, value: float, errors: float) -> bool:
        """By that many standard errors."""
        return self.mean - value > errors * max(self.sem, LEAST_ERROR)
