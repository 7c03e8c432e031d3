"""RLCM, PPO on the trajectory of a consistency model (Oertell et al., arXiv 2404.03673), and its two variants.

    rlcm    L = c L_reg + mean max(-A rho, -A clip(rho, 1 - k, 1 + k))
    ddpo    L = c L_reg + mean -A rho
    rebel   L = c L_reg + mean eta / 2 ((log rho_i - log rho_j) / eta - (A_i - A_j))^2

rho is how much likelier the generator makes a noise than when it was drawn, A how much better its sample was than
others (`lasro.functional.policy_gradient`).

Shape legend: G prompts, K first noises of each, D second noises for each, A actions, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lasro.config.method import AdvantageSettings, DdpoSettings, RebelSettings, RlcmSettings
from lasro.functional.policy_gradient import advantages, clipped_ratio_loss, rebel_loss
from lasro.methods.policy import PolicyMethod, action_pairs

S = TypeVar("S", bound=AdvantageSettings)


class AdvantageMethod(PolicyMethod[S], Generic[S]):
    """Follows an advantage. Rounds in which nothing differs teach nothing."""

    def compare(self, totals_GKD: Tensor, here: slice, device: torch.device) -> bool:
        settings, within_noise = self.settings, self.settings.compare_within == "noise"
        A_GKD = advantages(totals_GKD, settings.prompt_samples, settings.advantage_clip, within_noise)
        self._A_A = A_GKD[here].flatten().float().to(device)
        self._known = max(1, int(totals_GKD.isfinite().sum()))
        return bool(A_GKD.any())


class Rlcm(AdvantageMethod[RlcmSettings]):
    """PPO: a ratio that left its clip, in the direction that the advantage asks for, gives no gradient."""

    def loss(self, log_pi_A: Tensor, log_pi_old_A: Tensor, log_pi_base: Callable[[], Tensor]) -> Tensor:
        return clipped_ratio_loss(log_pi_A, log_pi_old_A, self._A_A, self.settings.clip_range).sum() / self._known


class Ddpo(AdvantageMethod[DdpoSettings]):
    """The score function estimator, corrected by the ratio in later updates of a round."""

    def loss(self, log_pi_A: Tensor, log_pi_old_A: Tensor, log_pi_base: Callable[[], Tensor]) -> Tensor:
        return clipped_ratio_loss(log_pi_A, log_pi_old_A, self._A_A, math.inf).sum() / self._known


class Rebel(AdvantageMethod[RebelSettings]):
    """Regresses differences of log ratios within a prompt to those of advantages."""

    def compare(self, totals_GKD: Tensor, here: slice, device: torch.device) -> bool:
        within_noise = self.settings.compare_within == "noise"
        self._pairs = [each.to(device) for each in action_pairs(totals_GKD[here], None, within_noise)]
        self._count = max(1, len(action_pairs(totals_GKD, None, within_noise)[0]))
        return super().compare(totals_GKD, here, device)

    def loss(self, log_pi_A: Tensor, log_pi_old_A: Tensor, log_pi_base: Callable[[], Tensor]) -> Tensor:
        log_rho_A = log_pi_A - log_pi_old_A
        first_P, second_P = self._pairs
        return rebel_loss(log_rho_A, self._A_A, first_P, second_P, self.settings.eta).sum() / self._count
