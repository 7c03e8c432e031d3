"""RLCM, PPO on the trajectory of a consistency model (Oertell et al., arXiv 2404.03673), and its two variants.

    rlcm    L = c L_reg + mean max(-A rho, -A clip(rho, 1 - k, 1 + k))
    ddpo    L = c L_reg + mean -A rho
    rebel   L = c L_reg + mean eta / 2 ((log rho_i - log rho_j) / eta - (A_i - A_j))^2

rho is how much likelier the generator makes a noise than when it was drawn, A how much better its sample was than
others (`lasro.functional.policy_gradient`).

Shape legend: G prompts, K first noises of each, D later noises for each, A actions, P pairs.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from lasro.config.method import AdvantageSettings, DdpoSettings, RebelSettings, RlcmSettings
from lasro.functional.policy_gradient import advantages, clipped_ratio_loss, rebel_loss
from lasro.methods.policy import ActionPairs, PolicyMethod, action_pairs

S = TypeVar("S", RlcmSettings, DdpoSettings)


class Advantages(NamedTuple):
    """Of this process's actions, float32 [A], and how many samples of all processes have a total."""

    A_A: Tensor
    known: int


def advantages_of(
    settings: AdvantageSettings, totals_GKD: Tensor, here: slice, device: torch.device
) -> Advantages | None:
    """For the groups `here`; None where nothing differs in any group."""
    within_noise = settings.compare_within == "noise"
    A_GKD = advantages(totals_GKD, settings.prompt_samples, settings.advantage_clip, within_noise)
    known = int(totals_GKD.isfinite().sum())
    return Advantages(A_GKD[here].flatten().float().to(device), known) if A_GKD.any() else None


class RatioMethod(PolicyMethod[S, Advantages]):
    """Follows the advantage by the ratio."""

    def compare(self, totals_GKD: Tensor, here: slice, device: torch.device) -> Advantages | None:
        return advantages_of(self.settings, totals_GKD, here, device)

    @property
    @abstractmethod
    def clip_range(self) -> float:
        """k."""

    def loss(
        self, compared: Advantages, log_pi_A: Tensor, log_pi_old_A: Tensor, log_pi_base: Callable[[], Tensor]
    ) -> Tensor:
        return clipped_ratio_loss(log_pi_A, log_pi_old_A, compared.A_A, self.clip_range).sum() / compared.known


class Rlcm(RatioMethod[RlcmSettings]):
    """PPO: a ratio that left its clip, in the direction that the advantage asks for, gives no gradient."""

    @property
    def clip_range(self) -> float:
        return self.settings.clip_range


class Ddpo(RatioMethod[DdpoSettings]):
    """The score function estimator, corrected by the ratio in later updates of a round."""

    @property
    def clip_range(self) -> float:
        return math.inf


class Rebel(PolicyMethod[RebelSettings, tuple[Advantages, ActionPairs]]):
    """Regresses differences of log ratios within a prompt to those of advantages."""

    def compare(self, totals_GKD: Tensor, here: slice, device: torch.device) -> tuple[Advantages, ActionPairs] | None:
        found = advantages_of(self.settings, totals_GKD, here, device)
        within_noise = self.settings.compare_within == "noise"
        return None if found is None else (found, action_pairs(totals_GKD, here, None, within_noise, device))

    def loss(
        self,
        compared: tuple[Advantages, ActionPairs],
        log_pi_A: Tensor,
        log_pi_old_A: Tensor,
        log_pi_base: Callable[[], Tensor],
    ) -> Tensor:
        (A_A, _), (first_P, second_P, total) = compared
        return rebel_loss(log_pi_A - log_pi_old_A, A_A, first_P, second_P, self.settings.eta).sum() / total
