"""Probe generators of stage 1: temporary generators that follow the surrogate as stage 2 will.

A surrogate that was trained on samples of the base alone ranks those well, but gives high scores to latents that a
generator soon finds by its gradient and that the reward does not like. A probe generator finds them during stage 1:
its samples of the same noise are scored by the reward and ranked together with the base's. After some rounds it is
reset to the base. LaSRO (arXiv 2411.15247) has no such generators; it pre-trains on samples of the base alone.

By `pretrain.probe_steps` a probe generator may move the second step alone, from the base's z1: nothing else shows the
surrogate what that does.
"""

from __future__ import annotations

from functools import partial

import torch

from lasro.config import PretrainSettings
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.prompts import Prompt
from lasro.training.sampling import Group, draw_prompts, sample_groups, sample_latents, sample_second_step_groups
from lasro.training.score_source import ScoreSource


def probe_age(settings: PretrainSettings, round: int) -> int:
    """Updates that the probe generator of this round has had; 0 where it is the base or there is none."""
    since = round - settings.probe_after
    return since % settings.probe_rounds if since >= 0 and settings.probe_rounds else 0


def moves_second_step_alone(settings: PretrainSettings, round: int) -> bool:
    """Whether the probe generator of this round takes its first step as the base does."""
    if settings.probe_steps != "alternate" or not settings.probe_rounds:
        return settings.probe_steps == "second"
    return max(0, round - settings.probe_after) // settings.probe_rounds % 2 == 1


class ProbeGenerator:
    """The adapter on `model.unet`, reset to the base every `pretrain.probe_rounds`. `model.base` stays as it is."""

    def __init__(self, trainer: GeneratorTrainer, settings: PretrainSettings, batch_size: int) -> None:
        """`batch_size`: prompts of an update."""
        self.trainer, self.settings, self.batch_size = trainer, settings, batch_size
        self.seed = trainer.seed
        self.policy = partial(sample_latents, trainer.model)

    def sample_groups(self, round: int, prompts: list[Prompt], *seed: object, first: int = 0) -> list[Group]:
        """Groups of the base and, while the probe generator is active, its samples as reference."""
        model, settings = self.trainer.model, self.settings
        if self.is_active(round) and moves_second_step_alone(settings, round):
            return sample_second_step_groups(model, prompts, settings, *seed, base=True, first=first)
        policy = self.policy if self.is_active(round) else None
        return sample_groups(model, prompts, settings, *seed, base=True, reference_policy=policy, first=first)

    def is_active(self, round: int) -> bool:
        """Whether it differs from the base in this round, so that its samples are worth a reward."""
        return probe_age(self.settings, round) > 0

    def update(
        self,
        round: int,
        prompts: list[Prompt],
        generator: torch.Generator,
        source: ScoreSource,
        unranked: bool = False,
    ) -> None:
        """One update by the surrogate's gradient, after a reset where one is due; no update in an `unranked` round."""
        if round < self.settings.probe_after or not self.settings.probe_rounds:
            return
        if probe_age(self.settings, round) == 0:
            self.trainer.restart(self.seed + round)
        if unranked:
            return
        self.trainer.base_takes_first = moves_second_step_alone(self.settings, round)
        batch = draw_prompts(prompts, self.batch_size, generator)
        self.trainer.step(batch, source)
