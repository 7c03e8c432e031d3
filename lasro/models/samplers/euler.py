"""Euler's method, plain and ancestral, with trailing timesteps: SDXL-Lightning, SD-Turbo and SDXL-Turbo.

Stock counts in sigma = sqrt((1 - abar) / abar) and divides a network's input by sqrt(1 + sigma^2). What it divides is
kept divided here, so that a step is one of DDIM, or with the ancestral noise one of DDPM.
"""

from __future__ import annotations

import copy
import math
from typing import Annotated, Any, Literal

from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from pydantic import AfterValidator
from torch import Tensor

from lasro.functional.trajectory import abar_of_sigma, ddim_noise
from lasro.models.conditioning import SamplingStep
from lasro.models.samplers.base import Prediction, SchedulerSettings, TrajectorySampler, TrajectoryStep, first_of


class EulerSettings(SchedulerSettings):
    """What an EulerDiscreteScheduler's configuration may say."""

    timestep_spacing: Literal["trailing"]
    """Others begin at a low timestep where there are few steps: at 1 of 1000 for a single one."""
    interpolation_type: Literal["linear"]
    use_karras_sigmas: Literal[False, None]
    use_exponential_sigmas: Literal[False, None]
    use_beta_sigmas: Literal[False, None]
    timestep_type: Literal["discrete"]
    final_sigmas_type: Literal["zero"]


class EulerSampler(TrajectorySampler):
    """A straight step from x_t towards x_0, as far as the next noise level."""

    stock_class: Any = EulerDiscreteScheduler
    settings_class = EulerSettings
    converted = {"timestep_spacing": "trailing"}  # noqa: RUF012  (a ClassVar by its declaration)
    takes_timesteps = True
    adds_noise = False

    def steps(self, num_steps: int, timesteps: tuple[int, ...] | None) -> tuple[SamplingStep, ...]:
        scheduler = copy.deepcopy(self.scheduler)
        if timesteps is None:
            scheduler.set_timesteps(num_steps)
        else:
            scheduler.set_timesteps(timesteps=first_of(timesteps, num_steps))
        levels = zip(scheduler.timesteps.tolist(), scheduler.sigmas.tolist()[:-1], strict=True)
        return tuple(TrajectoryStep(i, time, abar_of_sigma(sigma)) for i, (time, sigma) in enumerate(levels))

    def first_input(self, noise_BCHW: Tensor, step: SamplingStep) -> Tensor:
        """Stock begins with nothing but noise, of the first sigma."""
        assert isinstance(step, TrajectoryStep)
        return math.sqrt(1 - step.abar) * noise_BCHW

    def added_noise(self, step: TrajectoryStep, next_step: TrajectoryStep) -> float:
        return 0.0


def _no_sample(value: Prediction) -> Prediction:
    if value == "sample":
        raise ValueError("Expected 'epsilon' or 'v_prediction', all that stock's takes")
    return value


class EulerAncestralSettings(SchedulerSettings):
    """What an EulerAncestralDiscreteScheduler's configuration may say."""

    prediction_type: Annotated[Prediction, AfterValidator(_no_sample)]
    timestep_spacing: Literal["trailing"]


class EulerAncestralSampler(EulerSampler):
    """A step beyond the next noise level, and noise up to it."""

    stock_class: Any = EulerAncestralDiscreteScheduler
    settings_class = EulerAncestralSettings
    takes_timesteps = False
    adds_noise = True

    def added_noise(self, step: TrajectoryStep, next_step: TrajectoryStep) -> float:
        return ddim_noise(step.abar, next_step.abar, eta=1.0)
