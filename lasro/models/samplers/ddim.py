"""DDIM with trailing timesteps and no noise, as stock's DDIMScheduler does it: Hyper-SD's LoRAs of 2, 4 and 8 steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal

from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from lasro.errors import ModelError
from lasro.models.conditioning import SamplingStep
from lasro.models.samplers.base import TRAIN_TIMESTEPS, SchedulerSettings, TrajectorySampler, TrajectoryStep


class DdimSettings(SchedulerSettings):
    """What a DDIMScheduler's configuration may say."""

    timestep_spacing: Literal["trailing"]
    """Others begin at a low timestep where there are few steps: at 1 of 1000 for a single one."""
    clip_sample: Literal[False]
    """Clipping is made for pixels and suits no latents."""
    thresholding: Literal[False]


class DdimSampler(TrajectorySampler):
    """A step along the trajectory to the next timestep; the last one ends where `set_alpha_to_one` says."""

    stock_class = DDIMScheduler
    settings_class = DdimSettings
    converted = {"timestep_spacing": "trailing"}  # noqa: RUF012  (a ClassVar by its declaration)
    adds_noise = False

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        super().__init__(config, where)
        self._abars: list[float] = self.alphas_cumprod_T.double().tolist()
        self.end_abar = float(self.scheduler.final_alpha_cumprod)

    def steps(self, num_steps: int, timesteps: tuple[int, ...] | None) -> tuple[SamplingStep, ...]:
        scheduler = copy.deepcopy(self.scheduler)
        scheduler.set_timesteps(num_steps)
        times, stride = scheduler.timesteps.tolist(), TRAIN_TIMESTEPS // num_steps
        if any(time - stride != next_time for time, next_time in pairwise(times)):
            raise ModelError(
                f"steps: got {num_steps}, expected a number that divides {TRAIN_TIMESTEPS}: others end between two "
                "timesteps of a DDIMScheduler"
            )
        return tuple(TrajectoryStep(index, time, self._abars[time]) for index, time in enumerate(times))

    def added_noise(self, step: TrajectoryStep, next_step: TrajectoryStep) -> float:
        return 0.0
