"""Policy gradients on consistency sampling, whose steps are draws from a policy where they add noise: pure functions.

    pi_theta(a | x_t, c) = N(a; mean, sigma^2 I)            mean = sqrt(abar_s) f_theta(x_t, t, c), sigma^2 = 1 - abar_s
    log pi(a) = mean over CHW of -(a - mean)^2 / (2 sigma^2)          rho = exp(log pi_theta(a) - log pi_old(a))

    RLCM, PPO     L = mean max(-A rho, -A clip(rho, 1 - k, 1 + k))
    DDPO          L = mean -A rho                                     the score function estimator, while rho is 1
    REBEL         L = mean eta / 2 ((log rho_i - log rho_j) / eta - (A_i - A_j))^2        over pairs i, j of samples

A mean over CHW in place of the density's sum makes rho - 1 as small as 1e-4, which k and eta are made for. Of two steps
only the noise between them is drawn: a = x_tau1. The last step ends in its sample, without noise, and has no density.

Source: RLCM (Oertell et al., arXiv 2404.03673); DDPO (Black et al., arXiv 2305.13301); PPO (Schulman et al.,
arXiv 1707.06347); REBEL (Gao et al., arXiv 2404.16767), whose L is 2 / eta times the one here: so its gradient at the
start has the size of the others'.

Shape legend: A actions, P pairs of them, G prompts, K first noises of each, D second noises for each, CHW one latent.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 1e-9
"""A standard deviation below this share of the largest total is rounding, not variation."""


def log_probability(action_ACHW: Tensor, mean_ACHW: Tensor, sigma: float | Tensor) -> Tensor:
    """log pi(a) [A], without the constant that no gradient sees."""
    return -(action_ACHW - mean_ACHW).square().mean((1, 2, 3)) / (2 * sigma**2)


def advantages(totals_GKD: Tensor, prompt_samples: int = 16, clip: float = 10.0, within_noise: bool = False) -> Tensor:
    """A [G, K, D], float64: (r - mean) / deviation, clipped at plus or minus `clip`; 0 where a total is NaN or alone.

    Mean and deviation are those of a prompt's samples, or where it has fewer than `prompt_samples` those of all. With
    `within_noise` the mean is that of the D samples that share their first noise, and the deviation the one around it.
    """
    r_GKD, known_GKD = totals_GKD.double(), totals_GKD.isfinite()
    axes = (2,) if within_noise else (1, 2) if totals_GKD[0].numel() >= prompt_samples else (0, 1, 2)
    count = known_GKD.sum(axes, keepdim=True)
    centred_GKD = r_GKD - r_GKD.nansum(axes, keepdim=True) / count
    squares, spread = centred_GKD.square(), (0, 1, 2) if within_noise else axes
    freedom = (count - 1).clamp(min=0).sum(spread, keepdim=True) if within_noise else count - 1
    deviation = (squares.nansum(spread, keepdim=True) / freedom.clamp(min=1)).sqrt()
    varies = deviation > ROUNDING * r_GKD.nan_to_num(0.0).abs().max()
    A_GKD = torch.where(known_GKD & varies & (count > 1), centred_GKD / deviation, 0.0)
    return A_GKD.clamp(-clip, clip)


def clipped_ratio_loss(log_pi_A: Tensor, log_pi_old_A: Tensor, A_A: Tensor, clip: float) -> Tensor:
    """PPO's loss of each action [A]. A `clip` of infinity is DDPO's."""
    rho_A = (log_pi_A - log_pi_old_A).exp()
    return torch.maximum(-A_A * rho_A, -A_A * rho_A.clamp(1 - clip, 1 + clip))


def rebel_loss(log_rho_A: Tensor, A_A: Tensor, first_P: Tensor, second_P: Tensor, eta: float) -> Tensor:
    """REBEL's loss of each pair [P] of actions, whose indices are `first_P` and `second_P`, int64."""
    relative_P = (log_rho_A[first_P] - log_rho_A[second_P]) / eta
    return eta / 2 * (relative_P - (A_A[first_P] - A_A[second_P])).square()
