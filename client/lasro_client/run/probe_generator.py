"""Scouts of stage 1: throwaway generators that climb the surrogate as stage 2 will, for it to see where that leads.

A surrogate that only saw samples of the base ranks them well, yet a generator that follows its gradient soon finds
latents that it loves and the reward does not. A scout goes there first: from the same noise as the base's samples,
its own are scored by the true reward and ranked beside them. It is thrown away after some rounds and the next one
starts from the base again. This is ours; LaSRO (arXiv 2411.15247) pre-trains on samples of the base alone.
"""

from __future__ import annotations

from functools import partial

import torch

from lasro.config import PretrainSettings, RunSettings
from lasro.methods.registry import create_trainer
from lasro.models.base import GeneratorModel
from lasro.training.distributed import DistributedContext
from lasro.training.prompts import Prompt
from lasro.training.sampling import draw_prompts, sample_latents
from lasro.training.score_source import ScoreSource


def probe_age(settings: PretrainSettings, round: int) -> int:
    """Updates of the scout that is out in this round; 0 where none is."""
    since = round - settings.probe_after
    return since % settings.probe_rounds if since >= 0 and settings.probe_rounds else 0


class ProbeGenerator:
    """One scout after the other, on `model.unet`; `model.base` stays what it was."""

    def __init__(self, model: GeneratorModel, config: RunSettings, peers: DistributedContext | None = None) -> None:
        self.settings = config.pretrain
        self.batch_size, self.seed = config.train.batch_size, config.seed
        self.trainer = create_trainer(config, model, peers)
        self.policy = partial(sample_latents, model)

    def is_active(self, round: int) -> bool:
        """Whether there is one in this round that has left the base."""
        return probe_age(self.settings, round) > 0

    def update(self, round: int, prompts: list[Prompt], generator: torch.Generator, source: ScoreSource) -> None:
        """Its update of a round; a new scout starts where the last one's time is up."""
        if round < self.settings.probe_after or not self.settings.probe_rounds:
            return
        if probe_age(self.settings, round) == 0:
            self.trainer.restart(self.seed + round)
        batch = draw_prompts(prompts, self.batch_size, generator)
        self.trainer.step(batch, source)
