"""Noise tilting: the adapter moves the first noise, the frozen base does the rest (HyperNoise, arXiv 2508.09968).

    L = c mean D^2 - c1 mean S[R_psi(z1, c)],    z1 = f_base(x_tau0 + D, tau_0, c)

D is what the adapter adds (`lasro.functional.noise_tilting`). The update is LaSRO's, on a model that samples so. Later
steps are the base's: samples of k steps are only scored, unless the gradient goes through all of them back to the
first noise (`train.gradient_steps` of k or more).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lasro.config import RunSettings
from lasro.config.method import NoiseTiltingSettings
from lasro.errors import ConfigError
from lasro.functional.noise_tilting import shift_penalty
from lasro.methods.surrogate_ascent import SurrogateAscent
from lasro.models.base import GeneratorModel
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.step_samples import StepSamples


class NoiseTilting(SurrogateAscent):
    """The adapter of its model moves noise from then on, wherever that samples."""

    @classmethod
    def create(cls, config: RunSettings, model: GeneratorModel) -> NoiseTilting:
        assert isinstance(config.method, NoiseTiltingSettings)
        if 1 not in config.train.steps:
            raise ConfigError(
                f"train.steps: got {list(config.train.steps)}, expected 1 among them for method.type "
                f"{config.method.type}, which learns from the first step and is held by it"
            )
        if every := config.train.second_step_rounds:
            raise ConfigError(
                f"train.second_step_rounds: got {every}, expected 0 for method.type {config.method.type}, whose second "
                "step is the base's and never moves by itself"
            )
        model.tilt_noise()
        return cls(config.method, mean_square_shift, config.step_weights)


def mean_square_shift(trainer: GeneratorTrainer, steps: Sequence[StepSamples], draws: torch.Generator) -> Tensor:
    """This process's part of mean D^2 over the first step's noises, a micro-batch's activations held at a time."""
    first, parts = steps[0], trainer.micro_batches(len(steps[0].prompts))
    shift = trainer.model.noise_shift
    if len(parts) > 1:
        shift = partial(checkpoint, shift, use_reentrant=False)
    total = torch.zeros((), device=trainer.model.device)
    for part in parts:
        shift_BCHW = shift(first.x_t_BCHW[part], first.step, first.conditioning.rows(part))
        total = total + shift_penalty(shift_BCHW) * len(shift_BCHW) / first.total
    return total
