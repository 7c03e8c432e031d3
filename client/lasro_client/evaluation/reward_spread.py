"""How much of a reward's spread is signal: pure functions in float64, for an audit before a run and at its start.

A group is what the run ranks pairs within: a prompt's images, or those of one number of denoising steps. NaN is a
measurement that failed; it counts in nothing.

Shape legend: A groups, J images of a group, R repeats of the same image; P prompts, G numbers of denoising steps, K
seeds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Of a value as large as the largest: rounding alone makes a constant reward "vary" by some 1e-16 of it.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Components:
    """Variances of a measurement, each at least 0; None where too little was measured to say."""

    groups: float | None
    """Between groups: never compared in training."""
    images: float | None
    """Between images of a group: the signal that pairs are ranked by."""
    repeats: float | None
    """Between repeats of one image: the noise."""

    @property
    def signal_share(self) -> float | None:
        """Of the variance within a group, the part that is between images; None where nothing varies."""
        if self.images is None or self.repeats is None or self.images + self.repeats == 0:
            return None
        return self.images / (self.images + self.repeats)


@dataclass(frozen=True)
class Ties:
    """Pairs of a group's images, once per repeat, as training would compare them."""

    pairs: int
    """Pairs with both images scored."""
    tied: int
    """Those whose rewards differ by no more than the margin."""
    groups: int
    """Groups with a pair."""
    constant: int
    """Groups without a ranked pair in any repeat."""

    @property
    def tied_share(self) -> float | None:
        return self.tied / self.pairs if self.pairs else None

    @property
    def constant_share(self) -> float | None:
        return self.constant / self.groups if self.groups else None


def ranked_groups(rewards_PGKR: np.ndarray, within_num_steps: bool) -> np.ndarray:
    """The same numbers as [A, J, R], grouped as pairs are made: by prompt, or by prompt and number of steps."""
    prompts, step_counts, seeds, repeats = rewards_PGKR.shape
    shape = (prompts * step_counts, seeds, repeats) if within_num_steps else (prompts, step_counts * seeds, repeats)
    return rewards_PGKR.reshape(shape)


def variance_components(rewards_AJR: np.ndarray) -> Components:
    """Nested analysis of variance: groups, images within them, repeats within these; counts may be unequal.

    Each mean square is set equal to its expectation (Henderson's method 1); an estimate below zero, which chance can
    give where there is no such variance, becomes 0.
    """
    known_AJR = np.isfinite(rewards_AJR)
    y_AJR = np.where(known_AJR, rewards_AJR, 0.0)
    n_AJ = known_AJR.sum(2)
    n_A = n_AJ.sum(1)
    total, images, groups = int(n_A.sum()), int((n_AJ > 0).sum()), int((n_A > 0).sum())
    if total == 0:
        return Components(None, None, None)
    mean_AJ = y_AJR.sum(2) / np.maximum(n_AJ, 1)
    mean_A = y_AJR.sum((1, 2)) / np.maximum(n_A, 1)
    mean = y_AJR.sum() / total
    repeats_ms = _mean_square((known_AJR * (y_AJR - mean_AJ[:, :, None]) ** 2).sum(), total - images)
    images_ms = _mean_square((n_AJ * (mean_AJ - mean_A[:, None]) ** 2).sum(), images - groups)
    groups_ms = _mean_square((n_A * (mean_A - mean) ** 2).sum(), groups - 1)
    if repeats_ms is None or images_ms is None:
        return Components(None, None, repeats_ms)
    squares_A = (n_AJ**2).sum(1) / np.maximum(n_A, 1)  # of the images' counts, relative to their group's
    between_images = (images_ms - repeats_ms) / ((total - squares_A.sum()) / (images - groups))
    between_groups = None
    if groups_ms is not None:
        images_in_groups = (squares_A.sum() - (n_AJ**2).sum() / total) / (groups - 1)
        groups_weight = (total - (n_A**2).sum() / total) / (groups - 1)
        between_groups = (groups_ms - repeats_ms - images_in_groups * between_images) / groups_weight
    floor = (ROUNDING * float(np.abs(y_AJR).max())) ** 2
    return Components(*(_variance(value, floor) for value in (between_groups, between_images, repeats_ms)))


def _mean_square(sum_of_squares: float, degrees_of_freedom: int) -> float | None:
    return float(sum_of_squares) / degrees_of_freedom if degrees_of_freedom > 0 else None


def _variance(estimate: float | None, floor: float) -> float | None:
    if estimate is None:
        return None
    return float(estimate) if estimate > floor else 0.0


def best_pair_accuracy(signal_share: float) -> float:
    """How often one measurement each orders two images as their true rewards do: the most a surrogate can reach.

    For normal rewards and noise: 1/2 + arcsin(sqrt(share)) / pi, from 0.5 where all is noise to 1 where nothing is
    (Sheppard's formula for a pair of differences whose correlation is sqrt(share)).
    """
    return 0.5 + math.asin(math.sqrt(signal_share)) / math.pi


def repeats_for(wanted_share: float, found: Components) -> int | None:
    """How many of these measurements to average for that signal share; None where no number would do."""
    if not found.images or found.repeats is None:
        return None
    exact = wanted_share / (1 - wanted_share) * found.repeats / found.images
    return max(1, math.ceil(exact * (1 - ROUNDING)))


def count_ties(rewards_AJR: np.ndarray, margin: float) -> Ties:
    """Ties by the rule of training: a pair is ranked where its rewards differ by more than `margin`."""
    first, second = np.triu_indices(rewards_AJR.shape[1], k=1)
    difference_APR = np.abs(rewards_AJR[:, first] - rewards_AJR[:, second])
    comparable_APR, ranked_APR = np.isfinite(difference_APR), difference_APR > margin
    has_pair_A, has_ranked_A = comparable_APR.any((1, 2)), ranked_APR.any((1, 2))
    pairs = int(comparable_APR.sum())
    return Ties(pairs, pairs - int(ranked_APR.sum()), int(has_pair_A.sum()), int((has_pair_A & ~has_ranked_A).sum()))


def stage_share(rewards_PGKR: np.ndarray) -> float | None:
    """Of the spread within a prompt, how much is between its images of different numbers of steps; in [0, 1]."""
    together = variance_components(ranked_groups(rewards_PGKR, within_num_steps=False)).images
    apart = variance_components(ranked_groups(rewards_PGKR, within_num_steps=True)).images
    if not together or apart is None:
        return None
    return max(0.0, 1 - apart / together)


def prompt_means(rewards_PKR: np.ndarray) -> list[float | None]:
    """Mean reward of each prompt's images, those of one number of steps; None where none was scored."""
    means = []
    for rewards_KR in rewards_PKR:
        known = rewards_KR[np.isfinite(rewards_KR)]
        means.append(float(known.mean()) if known.size else None)
    return means
