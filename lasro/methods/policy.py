"""Methods that learn from the likelihood of their own samples: what all of them do, whatever they make of it.

Each round's trajectories are drawn again, with the weights that made them; then each update weighs how likely the
generator makes their noise now. The last step of sampling adds no noise, so it has no likelihood and no gradient.

Shape legend: G prompts, K first noises (x_tau0) of each, D second noises (eps) for each, A actions.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lasro.config import RunSettings
from lasro.config.method import PolicySettings
from lasro.errors import ConfigError
from lasro.methods.policy_steps import PolicyStep, policy_steps
from lasro.methods.regulariser import Regulariser, hold
from lasro.methods.rewarded import RewardedMethod, check_transitions
from lasro.models.base import GeneratorModel
from lasro.num_steps import NumSteps
from lasro.training.distributed import check_enough
from lasro.training.generator_trainer import GeneratorTrainer, StepStatistics
from lasro.training.prompts import Prompt
from lasro.training.rewarded_group import RewardedGroup, mean_total
from lasro.training.score_source import ScoreSource

P = TypeVar("P", bound=PolicySettings)


class PolicyMethod(RewardedMethod[P], Generic[P]):
    """Every update takes all samples of the round: `train.batch_size` says nothing to it.

    Of several processes each takes the groups of its share, so that no pair falls between two of them.
    """

    scale = 1.0
    """How many times larger the gradient of `loss` is than that of a mean advantage times log pi."""

    def __init__(self, settings: P, regulariser: Regulariser) -> None:
        super().__init__(settings, regulariser)
        self._steps: list[PolicyStep] = []
        self._means: dict[NumSteps, float | None] = {}

    @classmethod
    def check(cls, config: RunSettings, model: GeneratorModel) -> None:
        kind, train = config.method.type, config.train
        assert isinstance(config.method, PolicySettings)
        check_transitions(config)
        if not model.adds_noise:
            raise ConfigError(
                f"method.type: got {kind}, but this model's sampler adds no noise between steps, so that no sample has "
                "a likelihood; take another model.scheduler, or another method"
            )
        if config.method.compare_within == "noise" and train.second_step_draws < 2:
            raise ConfigError(
                f"train.second_step_draws: got {train.second_step_draws}, expected at least 2 with "
                'method.compare_within = "noise"'
            )

    def observe(self, trainer: GeneratorTrainer, groups: Sequence[RewardedGroup]) -> bool:
        check_enough("train.prompts_per_round", len(groups), trainer.peers)
        self._means = {n: mean_total(groups, n) for n in trainer.settings.steps}
        num_steps, seeds = groups[0].num_steps, len(groups[0].noises[0])
        totals_GKD = torch.stack([group.own_totals[num_steps].view(seeds, -1) for group in groups])
        if not self.compare(totals_GKD, trainer.peers.share(len(groups)), trainer.model.device):
            return False
        self._steps = policy_steps(trainer, groups)
        return True

    @abstractmethod
    def compare(self, totals_GKD: Tensor, here: slice, device: torch.device) -> bool:
        """Keep what `loss` needs to know of the totals, for the groups `here`; returns whether they teach anything."""

    @abstractmethod
    def loss(self, log_pi_A: Tensor, log_pi_old_A: Tensor, log_pi_base: Callable[[], Tensor]) -> Tensor:
        """This process's part of the mean loss of all processes, a scalar; of the generator as it is, as it was when it
        drew the samples, and of the frozen base, which is predicted where it is asked for."""

    def update(self, trainer: GeneratorTrainer, batch: Sequence[Prompt], source: ScoreSource | None) -> StepStatistics:
        model, now = trainer.model, [step.now(trainer) for step in self._steps]
        L_reg = self.regulariser(trainer, now, trainer.draws())
        L, held = hold(trainer, now, L_reg, self.settings)  # c L_reg, c by the distance from the base
        loss = torch.zeros((), device=model.device)
        for step, samples in zip(self._steps, now, strict=True):
            part = self.loss(step.log_pi(model, samples.z_BCHW), step.log_pi_old_A, partial(step.log_pi_base, model))
            loss = loss + part / len(now)
        mean_loss, regulariser = trainer.sum_over_processes([loss.item() + L.item(), L_reg.item()])
        grad_norm = trainer.apply(L + loss / self.scale)
        return StepStatistics(mean_loss, regulariser, self._means, grad_norm=grad_norm, **held._asdict())


def action_pairs(values_GKD: Tensor, margin: float | None, within_noise: bool) -> tuple[Tensor, Tensor]:
    """Pairs of actions of one prompt: indices of the first and the second, int64 [P], counted over all groups.

    With a `margin` the first is better by more than that; with None each pair of known values comes once. With
    `within_noise` both share their first noise.
    """
    G, K, D = values_GKD.shape
    values_GA = values_GKD.reshape(G, K * D)
    apart_GAA = values_GA[:, :, None] - values_GA[:, None, :]
    # Where one is NaN, neither is true.
    chosen_GAA = apart_GAA.isfinite().triu(diagonal=1) if margin is None else apart_GAA > margin
    if within_noise:
        of_noise_A = torch.arange(K).repeat_interleave(D)
        chosen_GAA = chosen_GAA & (of_noise_A[:, None] == of_noise_A[None, :])
    group_P, first_P, second_P = chosen_GAA.nonzero(as_tuple=True)
    return group_P * K * D + first_P, group_P * K * D + second_P
