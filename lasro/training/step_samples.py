"""Samples of an update by number of steps: inputs and clean latents of each step, and where they stand in the batch.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lasro.models.conditioning import Conditioning, SamplingStep
from lasro.num_steps import NumSteps
from lasro.training.prompts import Prompt


class TakenStep(NamedTuple):
    """A step of a sampler as it was taken: input and clean latents, and the noise that the input was made with."""

    step: SamplingStep
    x_t_BCHW: Tensor
    z_BCHW: Tensor
    noise_BCHW: Tensor
    """x_tau0 of the first; a sampler that adds none leaves the later ones out."""


@dataclass(frozen=True, eq=False)
class StepSamples:
    """What this process has of the last step of some samples: `rows` of the `total` that all processes draw."""

    step: SamplingStep
    x_t_BCHW: Tensor
    z_BCHW: Tensor
    prompts: list[Prompt]
    conditioning: Conditioning
    rows: slice
    total: int
    predict_base: Callable[[Tensor, SamplingStep, Conditioning], Tensor]
    trajectory: Sequence[TakenStep] = ()
    """All steps, noisiest first, this one last; a gradient reaches z of the last `train.gradient_steps`."""

    @property
    def num_steps(self) -> NumSteps:
        """Steps that the samples took."""
        return self.step.index + 1

    @cached_property
    def z_base_BCHW(self) -> Tensor:
        """The frozen base's last step from the same inputs, without a gradient; computed once, when first asked for."""
        with torch.no_grad():
            return self.predict_base(self.x_t_BCHW, self.step, self.conditioning)

    @property
    def share(self) -> float:
        """Of the mean over all processes' samples, what this process's mean counts."""
        return len(self.prompts) / self.total
