"""Trajectory consistency sampling, as stock's TCDScheduler does it: TCD, and Hyper-SD's unified LoRA."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from diffusers.schedulers.scheduling_tcd import TCDScheduler
from pydantic import Field

from lasro.functional.trajectory import tcd_noise
from lasro.models.conditioning import SamplingStep
from lasro.models.samplers.base import (
    TRAIN_TIMESTEPS,
    SchedulerSettings,
    TrajectorySampler,
    TrajectoryStep,
    check_grid,
    first_of,
)


class TcdSettings(SchedulerSettings):
    """What a TCDScheduler's configuration may say. Stock clips nothing here, whatever `clip_sample` says."""

    original_inference_steps: Annotated[int, Field(ge=4, le=TRAIN_TIMESTEPS)]
    """Of the model's distillation; a command draws up to 8 of them."""


class TcdSampler(TrajectorySampler):
    """A step beyond the next timestep, to a share 1 - eta of it, and noise up to it; the last ends at timestep 0."""

    stock_class = TCDScheduler
    settings_class = TcdSettings
    settings: TcdSettings
    takes_timesteps = True

    def __init__(self, config: Mapping[str, Any], where: str, eta: float = 0.0) -> None:
        """`eta`, 0 to 1: how stochastic steps are; stock pipelines take it as an argument, 0 where it is left out."""
        super().__init__(config, where)
        self.eta, self.adds_noise = eta, eta > 0
        self._abars: list[float] = self.alphas_cumprod_T.double().tolist()
        self.end_abar = self._abars[0]

    def steps(self, num_steps: int, timesteps: tuple[int, ...] | None) -> tuple[SamplingStep, ...]:
        if timesteps is not None:
            times = first_of(timesteps, num_steps)
        else:
            check_grid(num_steps, self.settings.original_inference_steps)
            scheduler = copy.deepcopy(self.scheduler)
            scheduler.set_timesteps(num_steps)
            times = scheduler.timesteps.tolist()
        return tuple(TrajectoryStep(index, time, self._abars[time]) for index, time in enumerate(times))

    def added_noise(self, step: TrajectoryStep, next_step: TrajectoryStep) -> float:
        between = int(torch.floor((1 - self.eta) * torch.tensor(int(next_step.time))))  # rounded as stock rounds it
        return tcd_noise(next_step.abar, self._abars[between])
