"""How the samples of a group rank: by the run's objective, its rewards normalised by what the replay holds.

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
from lasro.training.replay_buffer import Group


@dataclass(frozen=True)
class Ranker:
    """An objective with the scales of its normalised rewards, taken from the replay when a batch is drawn."""

    settings: SurrogateSettings
    objective: RewardObjective
    scales: Mapping[str, Scale]

    def values(self, group: Group) -> Tensor:
        """What ranks each sample, float64 [N]; NaN where a reward that counts failed."""
        found = totals(group.rewards, self.objective, self.scales)
        return torch.from_numpy(ranking_values(found, self.settings.tie_margin))

    def pairs(self, group: Group) -> tuple[Tensor, Tensor]:
        """Ranked pairs (winners_P, losers_P)."""
        stages_N = torch.from_numpy(group.stages_N)
        return ranked_pairs(self.values(group), stages_N, self.settings.tie_margin, self.settings.rank_within_num_steps)
