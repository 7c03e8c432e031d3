"""S, which gives scores a scale: pure functions.

    S(R) = clip((R - mean) / width, -clip, clip)

The mean is a moving one, the width a moving standard deviation (clip 3) or a moving maximum of |R - mean| (clip 1).
Bradley-Terry scores have no scale of their own, so S keeps moments of each number of steps. Source: LaSRO
(arXiv 2411.15247, stage 2), where S normalises and clips by a moving average and maximum; the deviation is ours.

Shape legend: B batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

OWN_FREEDOM = 8.0
"""Degrees of freedom from which the scores of one number of steps say their own width: then sigma is known to a
quarter, 1 / sqrt(2 * 8)."""
LEAST_FREEDOM = 2.0
"""Those of all numbers of steps together below which nothing is known of any: two scores may lie close by chance."""
ROUNDING = 1e-6
"""Of the mean: scores that differ by no more are the same in float32."""

ScaleKind = Literal["deviation", "maximum"]


class Moments(NamedTuple):
    """What is remembered of the scores of one number of steps. A score weighs momentum^(updates since)."""

    mean: float
    variance: float
    """Weighted mean of (R - mean)^2."""
    weight: float
    """Sum of the weights."""
    squared_weight: float
    """Sum of their squares."""
    maximum: float
    """Of |R - mean| of all batches before the newest; it fades by the momentum."""
    newest_maximum: float
    """Of the newest batch."""

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the variance: for N equal weights N - 1."""
        return self.weight - self.squared_weight / self.weight


class Scale(NamedTuple):
    """What S computes with; constants for the gradient. A width of infinity: nothing is known, and S is 0."""

    mean: float
    width: float
    clip: float


def update_moments(old: Moments | None, scores_B: Tensor, momentum: float) -> Moments:
    """Moments after a batch. Mean and mean square are averaged over scores, so batches of any size will do.

    A batch's own deviation would not: that of one score is 0, that of four is 0.8 of the truth.
    """
    scores_B, count = scores_B.double(), len(scores_B)
    batch_mean, batch_variance = scores_B.mean().item(), scores_B.var(unbiased=False).item()
    if old is None:
        first = (scores_B - batch_mean).abs().max().item()
        return Moments(batch_mean, batch_variance, count, count, first, first)
    kept, shift = momentum * old.weight, batch_mean - old.mean
    weight = kept + count
    mean = old.mean + shift * count / weight
    variance = (kept * old.variance + count * batch_variance) / weight + kept * count * (shift / weight) ** 2
    return Moments(
        mean,
        variance,
        weight,
        momentum**2 * old.squared_weight + count,
        max(momentum * old.maximum, old.newest_maximum),
        (scores_B - mean).abs().max().item(),
    )


def deviation(moments: Sequence[Moments]) -> float:
    """Standard deviation of scores about their own number of steps' mean, unbiased in the variance; freedom > 0."""
    squares = sum(each.weight * each.variance for each in moments)
    return math.sqrt(squares / sum(each.freedom for each in moments))


def score_scale(own: Moments, every: Sequence[Moments], kind: ScaleKind, clip: float) -> Scale:
    """The scale of one number of steps, of its moments and of those of every number of steps, its own among them.

    Until it has enough scores of its own, the width is that of all; until these are enough, infinite. A maximum leaves
    out the newest batch, so that a score beyond all before it is clipped; its clip is 1.
    """
    chosen = [own] if own.freedom >= OWN_FREEDOM else every
    width, clip = 0.0, clip if kind == "deviation" else 1.0
    if sum(each.freedom for each in chosen) >= LEAST_FREEDOM:
        width = deviation(chosen) if kind == "deviation" else max(each.maximum for each in chosen)
    return Scale(own.mean, math.inf if width <= ROUNDING * abs(own.mean) else width, clip)


def normalise_and_clip(scores_B: Tensor, scale: Scale) -> Tensor:
    """S(R) = clip((R - mean) / width, -clip, clip). Beyond the clip there is nothing more to gain."""
    return ((scores_B - scale.mean) / scale.width).clamp(-scale.clip, scale.clip)
