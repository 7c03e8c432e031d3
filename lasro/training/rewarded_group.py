"""What a method that learns from rewards sees of a round: noises, and what became of the samples that they made.

Samples are not carried: their noises and the generator that made them are still there, and draw them again exactly.

Shape legend: K seeds (x_tau0), D draws of eps for each, R first seeds that the base drew from too, C latent channels,
H, W latent height and width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from lasro.training.prompts import Prompt


class RewardedGroup(NamedTuple):
    """One prompt's samples of a round.

    Totals are the run's objective, float64: NaN where a reward that counts failed; a sample that a guard vetoed is
    below all others of its group.
    """

    prompt: Prompt
    noises: Sequence[Tensor]
    """x_tau0 [K, C, H, W], then eps of each later step [K D, C, H, W], the D of each x_tau0 in a row."""
    own_totals: Mapping[int, Tensor]
    """By number of steps, of the generator's samples: [K] after one step, [K D] after more."""
    base_totals: Mapping[int, Tensor]
    """Of the frozen base's samples of the first R seeds, in the same order; empty while the generator is the base."""

    @property
    def num_steps(self) -> int:
        """Of the longest samples."""
        return len(self.noises)


def mean_total(groups: Sequence[RewardedGroup], num_steps: int) -> float | None:
    """Of the generator's samples of that many steps; None where none has a total."""
    totals = [total for group in groups for total in group.own_totals[num_steps].tolist() if math.isfinite(total)]
    return math.fsum(totals) / len(totals) if totals else None
