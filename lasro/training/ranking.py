"""How the samples of a group rank: by the run's objective, with rewards normalised over the replay buffer.

Shape legend: N samples of a group, P ranked pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lasro.config import SurrogateSettings
from lasro.functional.bradley_terry import ranked_pairs
from lasro.functional.reward_totals import RewardObjective, Scale, ranking_values, totals
from lasro.training.replay_buffer import ReplayGroup


@dataclass(frozen=True)
class Ranker:
    """An objective, with the scales of its normalised rewards as of when a batch is drawn from the replay buffer."""

    settings: SurrogateSettings
    objective: RewardObjective
    scales: Mapping[str, Scale]

    def values(self, group: ReplayGroup) -> Tensor:
        """What ranks each sample, float64 [N]; NaN where a reward that counts failed."""
        found = totals(group.rewards, self.objective, self.scales)
        return torch.from_numpy(ranking_values(found, self.settings.tie_margin))

    def pairs(self, group: ReplayGroup) -> tuple[Tensor, Tensor]:
        """Ranked pairs (winners_P, losers_P)."""
        num_steps_N, settings = torch.from_numpy(group.num_steps_N), self.settings
        return ranked_pairs(self.values(group), num_steps_N, settings.tie_margin, settings.rank_within_num_steps)
