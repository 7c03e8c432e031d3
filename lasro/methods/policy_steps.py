"""The steps of a round's samples that added noise, as draws from a policy: drawn again, and their likelihood since.

    x_s ~ N(mean(z), sigma^2 I),    z = f_theta(x_t, t, c)

For two steps of an LCM: x_t = x_tau0, z = z1, x_s = x_tau1 = sqrt(abar) z1 + sigma eps. The mean and sigma are those of
the model's sampler, whichever it is, and of each step its own.

Shape legend: S states x_t, A actions x_s: D from each first state, one from each later one, C latent channels, H, W
latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lasro.functional.consistency import StepSample, sample
from lasro.functional.policy_gradient import log_probability
from lasro.models.base import GeneratorModel
from lasro.models.conditioning import Conditioning, SamplingStep
from lasro.num_steps import NumSteps
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.rewarded_group import RewardedGroup
from lasro.training.step_samples import StepSamples


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
def policy_steps(
    trainer: GeneratorTrainer, groups: Sequence[RewardedGroup], num_steps: Sequence[NumSteps]
) -> dict[NumSteps, list[PolicyStep]]:
    """Of all groups' samples in each of `num_steps`, rising and above 1, this process's share, step by step but for the
    last, which adds no noise.

    Drawn again by the trainer's own prediction: were it another, not every ratio would be 1 before the first update.
    """
    model, share = trainer.model, groups[trainer.peers.share(len(groups))]
    noises = [torch.cat(parts).to(model.device) for parts in zip(*(group.noises for group in share), strict=True)]
    first = torch.arange(len(noises[0]), device=model.device)
    rows = first.repeat_interleave(len(noises[1]) // len(first))
    embedded = model.embed([group.prompt.text for group in share]).repeat_each(len(first) // len(share))
    conditionings = [embedded, embedded.rows(rows)]

    def predict(x_t_BCHW: Tensor, step: SamplingStep) -> Tensor:
        return trainer.predict(x_t_BCHW, step, conditionings[min(step.index, 1)])

    schedules = [trainer.schedules[n] for n in num_steps]
    states = sample(predict, model.first_input, model.next_input, noises, [each[:-1] for each in schedules], rows=rows)
    found: dict[NumSteps, list[PolicyStep]] = {}
    for n, schedule, taken in zip(num_steps, schedules, states, strict=True):
        x_t_BCHW, z_BCHW = taken[-1] if n > 2 else (part[rows] for part in taken[0])
        last = model.next_input(x_t_BCHW, z_BCHW, noises[n - 1], *schedule[-2:])
        actions = [*(each.x_t_BCHW for each in taken[1:]), last]
        found[n] = []
        for step, next_step, state, actions_ACHW in zip(schedule, schedule[1:], taken, actions, strict=False):
            before = _states(trainer, groups, step, state, conditionings[min(step.index, 1)])
            log_pi_old_A = _log_pi(model, before, next_step, actions_ACHW)
            found[n].append(PolicyStep(before, next_step, actions_ACHW, log_pi_old_A))
    return found


def _states(
    trainer: GeneratorTrainer,
    groups: Sequence[RewardedGroup],
    step: SamplingStep,
    taken: StepSample,
    conditioning: Conditioning,
) -> StepSamples:
    """A step of this process's share, with the base's prediction from the same inputs."""
    here = trainer.peers.share(len(groups))
    of_group = len(taken.x_t_BCHW) // (here.stop - here.start)
    return StepSamples(
        step,
        *taken,
        prompts=[group.prompt for group in groups[here] for _ in range(of_group)],
        conditioning=conditioning,
        rows=slice(here.start * of_group, here.stop * of_group),
        total=len(groups) * of_group,
        predict_base=lambda x_t_BCHW, at, c: trainer.predict(x_t_BCHW, at, c, base=True),
    )


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
