"""Learning from pairs of samples, a winner and a loser of one prompt: pure functions.

    PSO online     L = -mean log sigma(beta (l_w - l_l)),   l = log clip(rho, 1 - k, 1 + k),   rho = pi_theta / pi_base
    PSO offline    L = -mean log sigma(beta w_s (d_w - d_l)),      d = (|f_base - z|^2 - |f_theta - z|^2) / 2
    Diffusion-DPO  the same with beta w_t

with f of the sample z diffused to t, by the same noise for both of a pair, and w = abar / (1 - abar). |.|^2 and log pi
are means over CHW. w_s d is the log ratio of the densities of x_s ~ N(sqrt(abar_s) z, 1 - abar_s) in expectation, where
the sampler goes from t to s; w_t |f - z|^2 is the loss of the noise at t that a diffusion model is trained by.

Source: PSO (Miao et al., arXiv 2410.03190); Diffusion-DPO (Wallace et al., arXiv 2311.12908).

Shape legend: A actions, P pairs, CHW one latent.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import logsigmoid


def clipped_log_ratio(log_pi_A: Tensor, log_pi_base_A: Tensor, clip: float) -> Tensor:
    """log clip(rho, 1 - clip, 1 + clip) [A]; beyond the clip it has no gradient."""
    return (log_pi_A - log_pi_base_A).clamp(math.log1p(-clip), math.log1p(clip))


def preference_loss(winners_P: Tensor, losers_P: Tensor, beta: float) -> Tensor:
    """-log sigma(beta (l_w - l_l)) of each pair [P]; log 2 where both are the base's."""
    return -logsigmoid(beta * (winners_P - losers_P))


def denoising_gain(z_PCHW: Tensor, f_PCHW: Tensor, f_base_PCHW: Tensor, weight_P: Tensor) -> Tensor:
    """w d [P]: by how much better than the base f predicts z."""
    errors = [(each - z_PCHW).square().mean((1, 2, 3)) for each in (f_base_PCHW, f_PCHW)]
    return weight_P * (errors[0] - errors[1]) / 2
