"""Probe generators of stage 1: temporary generators that follow the surrogate as stage 2 will.

A surrogate that was trained on samples of the base alone ranks those well, but gives high scores to latents that a
generator soon finds by its gradient and that the reward does not like. A probe generator finds them during stage 1:
its samples of the same noise are scored by the reward and ranked together with the base's. After some rounds it is
reset to the base. LaSRO (arXiv 2411.15247) has no such generators; it pre-trains on samples of the base alone.
"""

from __future__ import annotations

from functools import partial

import torch

from lasro.config import PretrainSettings
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.prompts import Prompt
from lasro.training.sampling import draw_prompts, sample_latents
from lasro.training.score_source import ScoreSource


def probe_age(settings: PretrainSettings, round: int) -> int:
    """Updates that the probe generator of this round has had; 0 where it is the base or there is none."""
    since = round - settings.probe_after
    return since % settings.probe_rounds if since >= 0 and settings.probe_rounds else 0


class ProbeGenerator:
    """The adapter on `model.unet`, reset to the base every `pretrain.probe_rounds`. `model.base` stays as it is."""

    def __init__(self, trainer: GeneratorTrainer, settings: PretrainSettings, batch_size: int) -> None:
        """`batch_size`: prompts of an update."""
        self.trainer, self.settings, self.batch_size = trainer, settings, batch_size
        self.seed = trainer.seed
        self.policy = partial(sample_latents, trainer.model)

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
        batch = draw_prompts(prompts, self.batch_size, generator)
        self.trainer.step(batch, source)
