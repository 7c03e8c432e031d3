"""Means, standard errors and paired differences of scores in which some items may have failed (None)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error. None where too few items were scored to say."""

    mean: float | None
    """None without any item."""
    sem: float | None
    """Standard error of the mean, from the sample standard deviation (n - 1); None below two items."""
    n: int
    """Items that entered."""
    failed: int
    """Items left out because a score is missing."""

    def as_dict(self) -> dict[str, float | None]:
        return {"mean": self.mean, "sem": self.sem}


@dataclass(frozen=True)
class Comparison:
    """Before, after and their difference over the same items: those scored both times."""

    before: Estimate
    after: Estimate
    difference: Estimate


def estimate(values: Sequence[float | None]) -> Estimate:
    """Mean and standard error of the items that have a value."""
    present = [value for value in values if value is not None]
    n, failed = len(present), len(values) - len(present)
    if n == 0:
        return Estimate(None, None, 0, failed)
    mean = math.fsum(present) / n
    if n == 1:
        return Estimate(mean, None, 1, failed)
    variance = math.fsum((value - mean) ** 2 for value in present) / (n - 1)
    return Estimate(mean, math.sqrt(variance / n), n, failed)


def differences(before: Sequence[float | None], after: Sequence[float | None]) -> list[float | None]:
    """after - before per item, None where either failed."""
    return [None if b is None or a is None else a - b for b, a in zip(before, after, strict=True)]


def paired_difference(before: Sequence[float | None], after: Sequence[float | None]) -> Estimate:
    """Mean of after - before and the standard error of that paired difference.

    Both sequences run over the same prompts and seeds, so what they share cancels: the error is far below
    that of the difference of two independent means. Items that failed in either are left out and counted.
    """
    return estimate(differences(before, after))


def compare(before: Sequence[float | None], after: Sequence[float | None]) -> Comparison:
    """All three estimates over the items scored both times, so that after - before is the difference."""
    difference = differences(before, after)
    kept = [index for index, value in enumerate(difference) if value is not None]
    failed = len(difference) - len(kept)

    def over_kept(values: Sequence[float | None]) -> Estimate:
        at_kept = estimate([values[index] for index in kept])
        return Estimate(at_kept.mean, at_kept.sem, at_kept.n, failed)

    return Comparison(over_kept(before), over_kept(after), estimate(difference))


def ratio_of_means(numerators: Sequence[float], denominators: Sequence[float]) -> Estimate:
    """mean(numerators) / mean(denominators) with the standard error of a ratio estimator.

    Unlike a mean of ratios it is not blown up by one small denominator. The error is the linearised one
    (Cochran, Sampling Techniques, section 6.4): that of the residuals a - ratio * b over mean(b).
    """
    pairs = list(zip(numerators, denominators, strict=True))
    bottom = math.fsum(b for _, b in pairs)
    if bottom == 0:
        return Estimate(None, None, 0, len(pairs))
    ratio = math.fsum(a for a, _ in pairs) / bottom
    mean_b = bottom / len(pairs)
    residuals = estimate([(a - ratio * b) / mean_b for a, b in pairs])
    return Estimate(ratio, residuals.sem, len(pairs), 0)
