"""GORS-LCM: consistency distillation on the best samples, weighted by their reward.

    L = c L_reg + mean r L_lcm(z)

L_lcm is the loss that latent consistency models are distilled by, at random steps of its solver, the boundary pair at
the clean end among them. With a teacher its solver makes the target; without, the noise that was added to z does, as in
consistency training. A plain regression of the noise would teach a few-step model to blur.

Source: GORS of T2I-CompBench (Huang et al., arXiv 2307.06350) with the loss of LCM (Luo et al., arXiv 2310.04378).

Shape legend: B samples, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from lasro.config import RunSettings
from lasro.config.method import GorsSettings
from lasro.errors import ConfigError
from lasro.methods.regulariser import Regulariser, distillation_part
from lasro.methods.sample_store import Stored, best_first
from lasro.methods.stored import StoredMethod, totals_of
from lasro.models.base import GeneratorModel
from lasro.models.distillation import SOLVER_STEPS, DistillationLoss
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.rewarded_group import RewardedGroup


class Gors(StoredMethod[GorsSettings]):
    """Samples are chosen within their prompt, so that easy prompts do not crowd out the others; or by a threshold."""

    def __init__(self, settings: GorsSettings, regulariser: Regulariser, distillation_loss: DistillationLoss) -> None:
        super().__init__(settings, regulariser)
        self.distillation_loss = distillation_loss

    @classmethod
    def build(
        cls, config: RunSettings, settings: GorsSettings, regulariser: Regulariser, model: GeneratorModel
    ) -> Self:
        return cls(settings, regulariser, model.distillation_loss(settings.teacher))

    @classmethod
    def check(cls, config: RunSettings, model: GeneratorModel) -> None:
        model.check_consistency(f"method.type {config.method.type}")

    def choose(self, group: RewardedGroup, latents: Sequence[Tensor]) -> None:
        totals, threshold = totals_of(group), self.settings.threshold
        order = best_first(totals)
        chosen = order[:1] if threshold is None else [each for each in order if totals[each[0]][each[1]] >= threshold]
        for which, row in chosen:
            total = totals[which][row].item()
            if self.settings.sample_weight == "reward" and total < 0:
                raise ConfigError(
                    f"method.sample_weight: got reward, but a chosen total of {group.prompt.text[:40]!r} is "
                    f'{total:.3g}, expected at least 0; set it to "none", or shift the reward'
                )
            self.store.add(
                group.prompt, latents[which][row][None], total if self.settings.sample_weight == "reward" else 1.0
            )

    def loss(self, trainer: GeneratorTrainer, stored: Stored, here: slice, draws: torch.Generator) -> Tensor:
        device, count = trainer.model.device, len(stored.prompts)
        steps_B = torch.randint(0, SOLVER_STEPS, (count,), generator=draws)[here].to(device)
        noise_BCHW = torch.randn((count, *trainer.model.latent_shape), generator=draws)[here].to(device)
        z_BCHW, weights_B = stored.latents_BMCHW[here, 0].to(device), stored.weights_B[here].to(device)
        prompts = [prompt.text for prompt in stored.prompts[here]]
        loss = self.distillation_loss
        return distillation_part(trainer, loss, z_BCHW, noise_BCHW, steps_B, prompts, count, weights_B)
