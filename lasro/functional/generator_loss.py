"""What the generator descends: pure functions.

    L = c L_reg - sum_k c_k mean S[R_psi(z_k, c)],  k each of the numbers of steps, one and two in the paper

S normalises scores and clips them (`score_normalisation`). Source: LaSRO (arXiv 2411.15247), stage 2.

Shape legend: B batch, CHW one latent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lasro.functional.noise_schedule import add_noise, clean_from_output, ddim_step, noise_from_output
from lasro.functional.score_normalisation import Scale, normalise_and_clip


def score_ascent(scores_B: Tensor, gradient_BCHW: Tensor, scale: Scale, weight: float) -> tuple[Tensor, Tensor]:
    """The term -weight * mean S[R(z)] and its gradient by z, from R(z) and dR/dz.

    Backpropagating the returned gradient through the generator gives exactly the gradient of the term, whether
    dR/dz was computed here or by the surrogate trainer.
    """
    leaf_B = scores_B.detach().requires_grad_()
    with torch.enable_grad():
        loss = -weight * normalise_and_clip(leaf_B, scale).mean()
    (slope_B,) = torch.autograd.grad(loss, leaf_B)
    return loss.detach(), slope_B[:, None, None, None] * gradient_BCHW


def stay_near_base(z: Tensor, z_base: Tensor) -> Tensor:
    """mean (z - z_base)^2 against the frozen base's prediction for the same input; L_reg is its sum over all z_k.

    z_base of a later step starts from the generator's own x_t, so a better first step is not pulled back by it.
    """
    return (z - z_base).square().mean()


def pseudo_huber(prediction: Tensor, target: Tensor, c: float = 1e-3, weights_B: Tensor | None = None) -> Tensor:
    """mean sqrt((a - b)^2 + c^2) - c, the distance of latent consistency distillation; `weights_B` weigh samples."""
    loss = ((prediction - target).square() + c**2).sqrt() - c
    return loss.mean() if weights_B is None else (weights_B * loss.flatten(1).mean(1)).mean()


def guided(conditional: Tensor, unconditional: Tensor, guidance: Tensor) -> Tensor:
    """Classifier-free guidance u + w (c - u)."""
    return unconditional + guidance * (conditional - unconditional)


def lcm_distillation(
    z: Tensor,
    noise: Tensor,
    t_B: Tensor,
    s_B: Tensor,
    guidance: Tensor,
    consistency: Callable[[Tensor, Tensor], Tensor],
    teacher: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None,
    alphas_cumprod_T: Tensor,
    prediction_type: str = "epsilon",
    weights_B: Tensor | None = None,
) -> Tensor:
    """L_lcm: f(x_t, t) against f(x_s, s), x_s one guided DDIM step of the teacher back from x_t (LCM, section 4.3).

    `z`, `noise` [BCHW]; timesteps t > s, int64 [B]; `consistency(x, t)` is f_theta, its own target without a gradient;
    `teacher(x, t)` gives conditional and unconditional outputs; with None x_s is z with the same noise at s, as in
    consistency training (Song et al., arXiv 2303.01469, section 5). Where s is 0 the target is x_s itself: the
    boundary, without which every constant f has no loss. `weights_B` weigh the samples' losses in their mean.
    """
    abar_t, abar_s = (alphas_cumprod_T[each].reshape(-1, 1, 1, 1) for each in (t_B, s_B))
    x_t = add_noise(z, noise, abar_t)
    with torch.no_grad():
        z_hat, noise_hat = z, noise
        if teacher is not None:
            conditional, unconditional = teacher(x_t, t_B)
            outputs = guided(conditional, unconditional, guidance)
            z_hat, noise_hat = (
                of(outputs, x_t, abar_t, prediction_type) for of in (clean_from_output, noise_from_output)
            )
        target = consistency(ddim_step(z_hat, noise_hat, abar_s), s_B)
    return pseudo_huber(consistency(x_t, t_B), target, weights_B=weights_B)


def ema_update(average: Sequence[Tensor], current: Sequence[Tensor], decay: float) -> None:
    """average <- decay * average + (1 - decay) * current, in place and all in one launch."""
    following = [p.detach().to(a.dtype) for a, p in zip(average, current, strict=True)]
    get_ema_multi_avg_fn(decay)(list(average), following, 0)
