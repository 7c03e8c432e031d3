"""PSO offline and Diffusion-DPO: of two stored samples the better is to be predicted better than the base does.

    L = c L_reg - mean log sigma(beta w (d_w - d_l)),    d = (|f_base(x_t) - z|^2 - |f_theta(x_t) - z|^2) / 2

x_t is the sample z diffused to t, by the same noise for both of a pair, whose t they share too.

    pso-offline      t one of the sampler's steps but the last, w = abar_s / (1 - abar_s) of the step after it
    diffusion-dpo    t one of the timesteps that the model was distilled at, w = abar_t / (1 - abar_t)

A pair is the best and the worst sample of a prompt in a round, of one step or more, the generator's or the base's.

Shape legend: B pairs, N = 2 B samples, winners first, T timesteps, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lasro.config import RunSettings
from lasro.config.method import DiffusionDpoSettings, PsoOfflineSettings
from lasro.errors import ConfigError
from lasro.functional.noise_schedule import solver_pairs
from lasro.functional.pairwise import denoising_gain, preference_loss
from lasro.functional.reward_totals import tie_margin
from lasro.methods.sample_store import Stored, best_first
from lasro.methods.stored import StoredMethod, totals_of
from lasro.models.base import GeneratorModel
from lasro.models.conditioning import Conditioning, SamplingStep
from lasro.models.distillation import SOLVER_STEPS
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.rewarded_group import RewardedGroup

P = TypeVar("P", PsoOfflineSettings, DiffusionDpoSettings)


class OfflinePairs(StoredMethod[P], Generic[P]):
    """Which timesteps and weights is the subclass's affair."""

    @classmethod
    def check(cls, config: RunSettings, model: GeneratorModel) -> None:
        model.check_consistency(f"method.type {config.method.type}")

    @property
    def scale(self) -> float:
        """The slope of -log sigma(beta x / 2) at 0."""
        return self.settings.beta / 4

    def choose(self, group: RewardedGroup, latents: Sequence[Tensor]) -> None:
        totals = totals_of(group)
        order = best_first(totals)
        if not order:
            return
        (best, row), (worst, other) = order[0], order[-1]
        margin = tie_margin(self.settings.tie_margin, [torch.cat(totals).numpy()])
        if totals[best][row] - totals[worst][other] > margin:
            self.store.add(group.prompt, torch.stack([latents[best][row], latents[worst][other]]))

    @abstractmethod
    def timesteps(self, schedules: Iterable[Sequence[SamplingStep]]) -> tuple[Tensor, Tensor]:
        """Those to choose from, int64 [T], and the timesteps that their weights w are of; `schedules` are the sampler's
        steps for each of `train.steps`."""

    def loss(self, trainer: GeneratorTrainer, stored: Stored, here: slice, draws: torch.Generator) -> Tensor:
        model, count = trainer.model, len(stored.prompts)
        t_T, s_T = self.timesteps(trainer.schedules.values())
        chosen_B = torch.randint(0, len(t_T), (count,), generator=draws)
        noise_BCHW = torch.randn((count, *model.latent_shape), generator=draws)[here].to(model.device)
        t_N, s_N = (each_T[chosen_B[here]].repeat(2).to(model.device) for each_T in (t_T, s_T))
        z_NCHW = stored.latents_BMCHW[here].transpose(0, 1).flatten(0, 1).to(model.device)
        x_t_NCHW = model.diffuse(z_NCHW, noise_BCHW.repeat(2, 1, 1, 1), t_N)
        conditioning = model.embed([prompt.text for prompt in stored.prompts[here]] * 2)
        f_NCHW, f_base_NCHW = (predict_at(trainer, x_t_NCHW, t_N, conditioning, base) for base in (False, True))
        gain_N = denoising_gain(z_NCHW, f_NCHW, f_base_NCHW, signal_to_noise(model, s_N))
        winners_B, losers_B = gain_N.chunk(2)
        return preference_loss(winners_B, losers_B, self.settings.beta).sum() / count


class PsoOffline(OfflinePairs[PsoOfflineSettings]):
    """On the transitions of `train.steps`: of two steps of an LCM from 999 to 499."""

    @classmethod
    def check(cls, config: RunSettings, model: GeneratorModel) -> None:
        super().check(config, model)
        if max(config.train.steps) == 1:
            raise ConfigError(
                f"train.steps: got {list(config.train.steps)}, expected 2 or more among them for method.type "
                f"{config.method.type}, which learns from the transitions between steps"
            )

    def timesteps(self, schedules: Iterable[Sequence[SamplingStep]]) -> tuple[Tensor, Tensor]:
        transitions = [(int(t.time), int(s.time)) for schedule in schedules for t, s in pairwise(schedule)]
        t_T, s_T = torch.tensor(transitions).unbind(1)
        return t_T, s_T


class DiffusionDpo(OfflinePairs[DiffusionDpoSettings]):
    """On the grid of the distillation's solver."""

    def timesteps(self, schedules: Iterable[Sequence[SamplingStep]]) -> tuple[Tensor, Tensor]:
        t_T, _ = solver_pairs(SOLVER_STEPS)
        return t_T, t_T


def predict_at(
    trainer: GeneratorTrainer, x_t_NCHW: Tensor, t_N: Tensor, conditioning: Conditioning, base: bool = False
) -> Tensor:
    """f_theta at any timesteps, in micro-batches; of the base without a gradient."""
    model = trainer.model
    with torch.set_grad_enabled(torch.is_grad_enabled() and not base):
        return trainer.in_micro_batches(
            lambda rows: model.predict_at(x_t_NCHW[rows], t_N[rows], conditioning.rows(rows), base), len(x_t_NCHW)
        )


def signal_to_noise(model: GeneratorModel, t_N: Tensor) -> Tensor:
    """abar_t / (1 - abar_t) [N], by what the model's diffusion makes of ones and zeros."""
    one, nothing = torch.ones(len(t_N), *model.latent_shape, device=model.device), torch.zeros(1, device=model.device)
    signal, noise = (model.diffuse(*each, t_N)[:, 0, 0, 0] for each in ((one, nothing * one), (nothing * one, one)))
    return (signal / noise).square()
