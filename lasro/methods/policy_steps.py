"""The steps of a round's samples that added noise, as draws from a policy: drawn again, and their likelihood since.

    x_s ~ N(mean(z), sigma^2 I),    z = f_theta(x_t, t, c)

For two steps of an LCM: x_t = x_tau0, z = z1, x_s = x_tau1 = sqrt(abar) z1 + sigma eps. The mean and sigma are those of
the model's sampler, whichever it is.

Shape legend: S states x_t, D draws of eps for each, A = S D actions x_s, C latent channels, H, W latent height, width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from lasro.functional.consistency import sample
from lasro.functional.policy_gradient import log_probability
from lasro.models.base import GeneratorModel, SamplingStep
from lasro.training.generator_trainer import GeneratorTrainer, StepSamples
from lasro.training.rewarded_group import RewardedGroup


@dataclass(frozen=True, eq=False)
class PolicyStep:
    """One step of this process's samples; `before` has its states, and z as the generator that drew them had it."""

    before: StepSamples
    next_step: SamplingStep
    actions_ACHW: Tensor
    log_pi_old_A: Tensor

    def now(self, trainer: GeneratorTrainer) -> StepSamples:
        """With z of the present weights, and a gradient; the base's is predicted once for all updates of a round."""
        before = self.before
        z_SCHW = trainer.predict(before.x_t_BCHW, before.step, before.conditioning)
        return replace(before, z_BCHW=z_SCHW, predict_base=lambda *_: before.z_base_BCHW)

    def log_pi(self, model: GeneratorModel, z_SCHW: Tensor) -> Tensor:
        """log pi(a) [A] of a policy that predicts z."""
        return _log_pi(model, replace(self.before, z_BCHW=z_SCHW), self.next_step, self.actions_ACHW)

    def log_pi_base(self, model: GeneratorModel) -> Tensor:
        """log pi(a) [A] of the frozen base."""
        return self.log_pi(model, self.before.z_base_BCHW)


@torch.no_grad()
def policy_steps(trainer: GeneratorTrainer, groups: Sequence[RewardedGroup]) -> list[PolicyStep]:
    """Of all groups' longest samples this process's share, step by step but for the last, which adds no noise.

    Drawn again by the trainer's own prediction: were it another, not every ratio would be 1 before the first update.
    """
    model, here = trainer.model, trainer.peers.share(len(groups))
    share, steps = groups[here], model.steps(groups[0].num_steps)
    noises = [torch.cat(parts).to(model.device) for parts in zip(*(group.noises for group in share), strict=True)]
    seeds = len(noises[0]) // len(share)
    conditioning = [model.embed([group.prompt.text for group in share]).repeat_each(seeds)]
    rows = torch.arange(len(noises[0]), device=model.device).repeat_interleave(len(noises[1]) // len(noises[0]))
    conditioning.append(conditioning[0].rows(rows))
    (taken,) = sample(
        lambda x_t_BCHW, step: trainer.predict(x_t_BCHW, step, conditioning[min(step.index, 1)]),
        model.first_input,
        model.next_input,
        noises[:-1],
        [steps[:-1]],
        rows=rows,
    )
    x_t_BCHW, z_BCHW = taken[-1] if len(steps) > 2 else (part[rows] for part in taken[-1])
    last = model.next_input(x_t_BCHW, z_BCHW, noises[-1], *steps[-2:])
    actions = [*(each.x_t_BCHW for each in taken[1:]), last]
    found = []
    for i, (step, next_step) in enumerate(pairwise(steps)):
        each = len(noises[i]) // len(share)
        prompts = [group.prompt for group in share for _ in range(each)]
        before = StepSamples(
            step,
            *taken[i],
            prompts,
            conditioning[min(i, 1)],
            slice(here.start * each, here.stop * each),
            len(groups) * each,
            lambda x_t_BCHW, at, c: trainer.predict(x_t_BCHW, at, c, base=True),
        )
        found.append(PolicyStep(before, next_step, actions[i], _log_pi(model, before, next_step, actions[i])))
    return found


def _log_pi(model: GeneratorModel, states: StepSamples, next_step: SamplingStep, actions_ACHW: Tensor) -> Tensor:
    x_t_SCHW, z_SCHW = states.x_t_BCHW, states.z_BCHW
    nothing = torch.zeros_like(z_SCHW)
    mean_SCHW = model.next_input(x_t_SCHW, z_SCHW, nothing, states.step, next_step)
    one = torch.ones_like(z_SCHW[:1])
    with_noise, without = (
        model.next_input(nothing[:1], nothing[:1], noise, states.step, next_step) for noise in (one, nothing[:1])
    )
    sigma = (with_noise - without).mean()
    return log_probability(actions_ACHW, mean_SCHW.repeat_interleave(len(actions_ACHW) // len(z_SCHW), 0), sigma)
