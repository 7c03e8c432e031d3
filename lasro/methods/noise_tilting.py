"""Noise tilting: the adapter moves the first noise, the frozen base does the rest (HyperNoise, arXiv 2508.09968).

    L = c mean D^2 - c1 mean S[R_psi(z1, c)],    z1 = f_base(x_tau0 + D, tau_0, c)

D is what the adapter adds (`lasro.functional.noise_tilting`). The update is LaSRO's, on a model that samples so; the
second step is the base's and has no gradient of its own, which is why z2 is only scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lasro.config import RunSettings
from lasro.config.method import NoiseTiltingSettings
from lasro.functional.noise_tilting import shift_penalty
from lasro.methods.surrogate_ascent import SurrogateAscent
from lasro.models.base import GeneratorModel
from lasro.training.generator_trainer import GeneratorTrainer, StepSamples


class NoiseTilting(SurrogateAscent):
    """The adapter of its model moves noise from then on, wherever that samples."""

    @classmethod
    def create(cls, config: RunSettings, model: GeneratorModel) -> NoiseTilting:
        assert isinstance(config.method, NoiseTiltingSettings)
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
