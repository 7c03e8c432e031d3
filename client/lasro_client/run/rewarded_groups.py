"""A round's groups as a method that learns from rewards sees them: each sample's total by the run's objective.

Shape legend: N samples of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from lasro.functional.reward_totals import RewardObjective, Scale, Totals, Values, ranking_values, totals
from lasro.training.group_summary import GroupSummary
from lasro.training.rewarded_group import RewardedGroup
from lasro.wire import ScoredItem, scores_of
from lasro_client.run.collect import Collected


def rewarded_groups(
    collected: Collected,
    objective: RewardObjective,
    scales: Mapping[str, Scale],
    noises: Callable[[int], Sequence[Tensor]],
) -> list[RewardedGroup]:
    """`scales` are those of normalised rewards; `noises(index)` those that the round's group `index` was drawn from.

    Of several processes each gets all groups.
    """
    found, start, groups = totals(rewards_of(collected.items, objective), objective, scales), 0, []
    for index, group in enumerate(collected.groups):
        rows = slice(start, start + len(group.stages))
        of_group = Totals(found.total_N[rows], found.vetoed_N[rows], found.floor_violation_N[rows])
        values_N = ranking_values(of_group, margin=0.0)
        own, base = (_by_num_steps(group, values_N, is_reference) for is_reference in (False, True))
        groups.append(RewardedGroup(group.prompt, noises(index), own, base))
        start = rows.stop
    return groups


def rewards_of(items: Sequence[ScoredItem], objective: RewardObjective) -> dict[str, Values]:
    """Of samples, each reward that counts or vetoes, by name; NaN where one failed."""
    return {name: np.array(scores_of(items, name), dtype=float) for name in objective.weights}


def _by_num_steps(group: GroupSummary, values_N: np.ndarray, is_reference: bool) -> dict[int, Tensor]:
    num_steps_N, chosen_N = np.array(group.stages), np.array(group.is_reference) == is_reference
    return {
        int(num_steps): torch.from_numpy(values_N[chosen_N & (num_steps_N == num_steps)])
        for num_steps in np.unique(num_steps_N[chosen_N])
    }
