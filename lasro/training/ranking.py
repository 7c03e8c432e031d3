"""How the samples of a group rank: by the run's objective, with rewards normalised over the replay buffer.

Shape legend: N samples of a group, P ranked pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lasro.config import SurrogateSettings
from lasro.functional.bradley_terry import count_ties, ranked_pairs
from lasro.functional.reward_totals import RewardObjective, Scale, ranking_values, totals
from lasro.training.replay_buffer import ReplayGroup


@dataclass(frozen=True)
class Ranker:
    """An objective, with the scales of its normalised rewards and the tie margin as of when a batch is drawn."""

    settings: SurrogateSettings
    objective: RewardObjective
    scales: Mapping[str, Scale]
    margin: float
    """Largest difference of two totals that is a tie, in units of the total."""

    def values(self, group: ReplayGroup) -> Tensor:
        """What ranks each sample, float64 [N]; NaN where a reward that counts failed."""
        found = totals(group.rewards, self.objective, self.scales)
        return torch.from_numpy(ranking_values(found, self.margin))

    def pairs(self, group: ReplayGroup) -> tuple[Tensor, Tensor]:
        """Ranked pairs (winners_P, losers_P)."""
        num_steps_N = torch.from_numpy(group.num_steps_N)
        return ranked_pairs(self.values(group), num_steps_N, self.margin, self.settings.rank_within_num_steps)

    def count_ties(self, group: ReplayGroup) -> int:
        """Pairs of samples with a total that are in no ranked pair."""
        num_steps_N = torch.from_numpy(group.num_steps_N)
        return count_ties(self.values(group), num_steps_N, self.margin, self.settings.rank_within_num_steps)
