"""What a round of stage 2 samples, and with which reference samples: those of the base once the generator is another.

Draws are seeded by the run's seed and the round, so that a round that is repeated is the same round.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from lasro.config import SamplingSettings
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.prompts import Prompt
from lasro.training.sampling import (
    Group,
    draw_group_noises,
    draw_prompts,
    generator_for,
    sample_groups,
    sample_latents,
    sample_perturbed,
    sample_second_step_groups,
)
from lasro_client.run.collect import Collected, OnScored, collect
from lasro_client.run.folder import RunFolder
from lasro_client.run.submission import RoundHeader
from lasro_client.run.train_schedule import TrainSchedule
from lasro_client.services.feedback import FeedbackClient


class RoundSampler:
    """Of one run. It keeps nothing between rounds."""

    def __init__(
        self,
        folder: RunFolder,
        trainer: GeneratorTrainer,
        feedback: FeedbackClient,
        schedule: TrainSchedule,
        prompts: list[Prompt],
    ) -> None:
        self.folder, self.config, self.prompts = folder, folder.config, prompts
        self.trainer, self.feedback, self.schedule = trainer, feedback, schedule
        self.on_scored: OnScored | None = None
        """Sees each round's groups with their images."""

    def collect(self, round: int) -> Collected:
        """The round's groups with their rewards. Raises BudgetError where it may not be done."""
        _, prompts = self.draws(round)
        keep = self.folder.path if self.config.train.keep_samples else None
        header = RoundHeader(
            round, self.trainer.version, list(self.config.weights), self.config.budget.max_reward_calls
        )
        return collect(self.feedback, prompts, partial(self._sample, round), header, keep, self.on_scored)

    def draws(self, round: int) -> tuple[torch.Generator, list[Prompt]]:
        """The prompts of a round's groups, and the random generator that draws those of its updates."""
        draws = generator_for(self.config.seed, "train prompts", round)
        return draws, draw_prompts(self.prompts, self._settings.prompts_per_round, draws)

    def noises(self, round: int, index: int) -> list[Tensor]:
        """x_tau0 [K, C, H, W] and eps [K D, C, H, W] that the round's group at `index` is drawn from."""
        settings, draws = self._settings, generator_for(*self._seed(round), index)
        K, D, most = settings.seeds_per_prompt, settings.second_step_draws, max(settings.steps)
        return draw_group_noises(self.trainer.model, K, D, draws, most)

    def _seed(self, round: int) -> tuple[object, ...]:
        return self.config.seed, "train", round

    @property
    def _settings(self) -> SamplingSettings:
        """Of the phase's rounds."""
        return self.config.train.ranking if self.schedule.phase == "ranking" else self.config.train

    def compares_with_base(self, round: int) -> bool:
        """Whether reference samples are the base's in both steps: what they say of gain and drift holds only then."""
        return self.schedule.phase != "ranking" and not self._moves_second_step_alone(round)

    def _moves_second_step_alone(self, round: int) -> bool:
        every = self.config.train.second_step_rounds
        return bool(every) and not self.trainer.is_base and (round + 1) % every == 0

    def _sample(self, round: int, prompts: list[Prompt], first: int) -> list[Group]:
        model, settings, perturbation = self.trainer.model, self._settings, self.config.train.perturbation
        seed = self._seed(round)
        if self._moves_second_step_alone(round):
            return sample_second_step_groups(model, prompts, settings, *seed, first=first)
        reference = None if self.trainer.is_base else partial(sample_latents, model, base=True)
        if self.schedule.phase == "ranking" and self.schedule.ranking.is_young and perturbation:
            reference = partial(sample_perturbed, model, perturbation)
        return sample_groups(model, prompts, settings, *seed, reference_policy=reference, first=first)
