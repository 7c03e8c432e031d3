"""Several rewards combined to one total per sample, and the ranking by it: pure functions of float64 arrays.

    combine = "sum":      total = sum_k  w_k r_k
    combine = "product":  total = prod_k r_k ^ w_k        rewards and weights of at least 0
    combine = "minimum":  total = min_k  w_k r_k

over the rewards with a weight; a normalised reward enters as (r_k - mean) / standard deviation. A reward with a floor
is a guard: a sample below the floor is vetoed. Vetoed samples rank below all others, lower the farther they are below.

Only rewards are stored. Totals are computed when they are used, so a replayed or cached reward never goes stale.

Shape legend: N samples, G groups of samples of one prompt. NaN stands for a reward that failed, or the total of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lasro.errors import ConfigError, WireError

Combine = Literal["sum", "product", "minimum"]
Values = NDArray[np.float64]
ROUNDING = 1e-9
"""A standard deviation below this share of the largest value is rounding, not variation."""


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation by which a reward is normalised, in units of the reward.

    A reward with a standard deviation of 0 has not varied yet, and is left out of the total.
    """

    mean: float
    deviation: float


UNSCALED = Scale(0.0, 1.0)


@dataclass(frozen=True)
class RewardObjective:
    """How the rewards of a run are combined. A reward of weight 0 without a floor is only logged.

    Raises ConfigError for a combination that has no meaning.
    """

    weights: Mapping[str, float]
    combine: Combine = "sum"
    floors: Mapping[str, float] = field(default_factory=dict)
    """Lowest value of each guard that is not vetoed, in units of its reward."""
    normalised: Collection[str] = ()

    def __post_init__(self) -> None:
        for what, names in (("floors", self.floors), ("normalised", self.normalised)):
            if unknown := sorted(set(names) - self.weights.keys()):
                raise ConfigError(f"{what}: got {unknown}, expected only rewards of the objective {list(self.weights)}")
        for name, weight in self.weights.items() if self.combine == "product" else ():
            if weight < 0:
                raise ConfigError(f"weight of {name}: got {weight:g}, expected at least 0 in a product")
            if weight and name in self.normalised:
                raise ConfigError(
                    f"{name}: a normalised reward falls on both sides of 0, which no product can take; "
                    "leave it as it is, or combine by sum or minimum"
                )

    @property
    def required_rewards(self) -> list[str]:
        """Rewards with a weight or a floor, without which there is no total."""
        return [name for name, weight in self.weights.items() if weight or name in self.floors]


class Totals(NamedTuple):
    """Totals of N samples. `total_N` ignores floors; it is NaN where a reward with a weight or a floor failed.

    `floor_violation_N` is the distance of a vetoed sample below the floors, summed over guards, in standard deviations
    where the guard's reward is normalised, else in its unit; 0 elsewhere. A sample that failed is not vetoed.
    """

    total_N: Values
    vetoed_N: NDArray[np.bool_]
    floor_violation_N: Values

    @property
    def valid_total_N(self) -> Values:
        """`total_N` with NaN for vetoed samples too: the values that may be averaged."""
        return np.where(self.vetoed_N, np.nan, self.total_N)


def scale_of(values_GN: Sequence[Values]) -> Scale:
    """Mean of all values that are not NaN, and their standard deviation within groups, pooled over the groups.

    Samples are only ever compared within a group, so that is where the rewards' spreads are to be made equal.
    """
    values = np.concatenate([*values_GN, np.empty(0)])
    groups = np.repeat(np.arange(len(values_GN)), [len(values_N) for values_N in values_GN])
    known = np.isfinite(values)
    values, groups = values[known], groups[known]
    peak = float(np.abs(values).max(initial=0))
    if peak == 0:
        return Scale(0.0, 0.0)
    values = values / peak  # of any size without overflow
    counts_G = np.bincount(groups)
    means_G = np.bincount(groups, values) / np.maximum(counts_G, 1)
    freedom = max(1, len(values) - np.count_nonzero(counts_G))
    deviation = float(np.sqrt(np.square(values - means_G[groups]).sum() / freedom))
    return Scale(peak * float(values.mean()), peak * deviation if deviation > ROUNDING else 0.0)


def check_product(rewards: Mapping[str, Values], objective: RewardObjective) -> None:
    """Raise WireError naming a negative reward where rewards are multiplied: such a product has no meaning."""
    if objective.combine != "product":
        return
    for name, weight in objective.weights.items():
        if weight and (rewards[name] < 0).any():
            raise WireError(
                f"reward {name}: got {np.nanmin(rewards[name]):g}, expected at least 0 in a product; "
                "shift it, or combine by sum or minimum"
            )


def totals(
    rewards: Mapping[str, Values], objective: RewardObjective, scales: Mapping[str, Scale] | None = None
) -> Totals:
    """Totals of N samples from their `rewards` by name, [N] each; `scales` has one for each normalised reward.

    Where no reward has a weight all totals are 0 and only guards rank. A total beyond float64 counts as failed.
    Raises WireError as `check_product` does.
    """
    check_product(rewards, objective)
    zeros_N = np.zeros(len(next(iter(rewards.values()))))
    vetoed_N, floor_violation_N, failed_N = zeros_N > 0, zeros_N, zeros_N > 0
    scaled: dict[str, Values] = {}
    with np.errstate(over="ignore", invalid="ignore"):
        for name in objective.required_rewards:
            reward_N, floor = rewards[name], objective.floors.get(name)
            failed_N = failed_N | np.isnan(reward_N)
            scale = (scales or {})[name] if name in objective.normalised else UNSCALED
            if scale.deviation:
                scaled[name] = reward_N if scale is UNSCALED else (reward_N - scale.mean) / scale.deviation
            if floor is not None:
                vetoed_N = vetoed_N | (reward_N < floor)
                if scale.deviation:
                    floor_violation_N = floor_violation_N + np.maximum((floor - reward_N) / scale.deviation, 0)
        total_N = zeros_N + _combined(scaled, objective)
    failed_N = failed_N | ~np.isfinite(total_N)
    vetoed_N = vetoed_N & ~failed_N
    return Totals(np.where(failed_N, np.nan, total_N), vetoed_N, np.where(vetoed_N, floor_violation_N, 0.0))


def _combined(rewards: Mapping[str, Values], objective: RewardObjective) -> Values | float:
    terms = [(weight, rewards[name]) for name, weight in objective.weights.items() if weight and name in rewards]
    if not terms:
        return 0.0
    if objective.combine == "product":
        return reduce(np.multiply, (values_N**weight for weight, values_N in terms))
    weighted = (weight * values_N for weight, values_N in terms)
    return reduce(np.minimum if objective.combine == "minimum" else np.add, weighted)


def group_totals(
    rewards_GN: Sequence[Mapping[str, Values]], objective: RewardObjective, scales: Mapping[str, Scale] | None = None
) -> list[Values]:
    """`valid_total_N` of each group, computed for all groups together."""
    if not rewards_GN:
        return []
    together = {name: np.concatenate([group[name] for group in rewards_GN]) for name in objective.weights}
    counts = [len(next(iter(group.values()))) for group in rewards_GN]
    return np.split(totals(together, objective, scales).valid_total_N, np.cumsum(counts)[:-1])


def tie_margin(share: float, totals_GN: Sequence[Values]) -> float:
    """The largest difference of two totals that is a tie: this share of their standard deviation within groups.

    Where they do not vary it is what may be rounding, so that no order is made of that.
    """
    deviation = scale_of(totals_GN).deviation
    if deviation:
        return share * deviation
    values = np.concatenate([*totals_GN, np.empty(0)])
    return ROUNDING * float(np.abs(values[np.isfinite(values)]).max(initial=0))


def ranking_values(found: Totals, margin: float) -> Values:
    """One value per sample of a group: of two that differ by more than `margin`, the higher ranks above.

    Vetoed samples get values below all others, by more than the margin, and apart by their floor violation. NaN where a
    reward failed. Only differences have a meaning.
    """
    valid_total_N = found.valid_total_N[np.isfinite(found.valid_total_N)]
    lowest = valid_total_N.min() if len(valid_total_N) else 0.0
    return np.where(found.vetoed_N, lowest - (1 + 2 * margin) - found.floor_violation_N, found.total_N)
