"""PSO online (Miao et al., arXiv 2410.03190): of two own samples of a prompt the better is made likelier than the base
has it, the worse less likely.

    L = c L_reg - mean log sigma(beta (log clip(rho_w, 1 - k, 1 + k) - log clip(rho_l, 1 - k, 1 + k)))

rho is the ratio of a noise's density to the frozen base's (`lasro.functional.pairwise`). Pairs that tie are left out.

Shape legend: G prompts, K first noises of each, D second noises for each, A actions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lasro.config.method import PsoOnlineSettings
from lasro.functional.pairwise import clipped_log_ratio, preference_loss
from lasro.functional.reward_totals import tie_margin
from lasro.methods.policy import PolicyMethod, action_pairs


class PsoOnline(PolicyMethod[PsoOnlineSettings]):
    """All pairs of a prompt's samples enter."""

    @property
    def scale(self) -> float:
        """The slope of -log sigma(beta x) at 0."""
        return self.settings.beta / 2

    def compare(self, totals_GKD: Tensor, here: slice, device: torch.device) -> bool:
        within_noise = self.settings.compare_within == "noise"
        margin = tie_margin(self.settings.tie_margin, list(totals_GKD.flatten(1).numpy()))
        winners_P, losers_P = action_pairs(totals_GKD[here], margin, within_noise)
        self._pairs = winners_P.to(device), losers_P.to(device)
        self._count = len(action_pairs(totals_GKD, margin, within_noise)[0])
        return self._count > 0

    def loss(self, log_pi_A: Tensor, log_pi_old_A: Tensor, log_pi_base: Callable[[], Tensor]) -> Tensor:
        l_A = clipped_log_ratio(log_pi_A, log_pi_base(), self.settings.clip_range)
        winners_P, losers_P = self._pairs
        return preference_loss(l_A[winners_P], l_A[losers_P], self.settings.beta).sum() / self._count
