"""Consistency sampling, as stock's LCMScheduler does it: latent consistency models, LCM-LoRA, DMD2.

`timestep_spacing`, `steps_offset` and `set_alpha_to_one` change no sample of an LCMScheduler in stock diffusers, and
none here. All else that changes one is taken from its configuration, or named in a refusal.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from pydantic import Field
from torch import Tensor

from lasro.config.base import Positive
from lasro.functional.consistency import boundary_scalings, consistency
from lasro.functional.noise_schedule import add_noise, clean_from_output, lcm_timesteps
from lasro.models.conditioning import SamplingStep
from lasro.models.samplers.base import TRAIN_TIMESTEPS, Sampler, SchedulerSettings, check_grid, first_of


class LcmSettings(SchedulerSettings):
    """What an LCMScheduler's configuration may say. Others of its keys are read where its noise levels are computed."""

    original_inference_steps: Annotated[int, Field(ge=4, le=TRAIN_TIMESTEPS)]
    """Of the model's distillation; a command draws up to 8 of them."""
    timestep_scaling: Positive
    clip_sample: bool
    clip_sample_range: Positive
    thresholding: Literal[False]
    """Dynamic thresholding is made for pixels and suits no latents."""


class LcmSampler(Sampler):
    """Each step predicts clean latents, which are diffused again, by noise of their own, to the next timestep."""

    stock_class = LCMScheduler
    settings_class = LcmSettings
    settings: LcmSettings
    takes_timesteps = True

    def steps(self, num_steps: int, timesteps: tuple[int, ...] | None) -> tuple[SamplingStep, ...]:
        """Stock's `set_timesteps(timesteps=...)` takes any that fall, on the distillation's grid or not."""
        if timesteps is not None:
            times = first_of(timesteps, num_steps)
        else:
            check_grid(num_steps, self.settings.original_inference_steps)
            times = lcm_timesteps(num_steps, TRAIN_TIMESTEPS, self.settings.original_inference_steps)
        return tuple(SamplingStep(index, time) for index, time in enumerate(times))

    def clean(self, output_BCHW: Tensor, x_t_BCHW: Tensor, step: SamplingStep) -> Tensor:
        return self.predict(output_BCHW, x_t_BCHW, torch.as_tensor(int(step.time), device=output_BCHW.device))

    def predict(self, output_BCHW: Tensor, x_t_BCHW: Tensor, timestep: Tensor) -> Tensor:
        """f_theta of the network's output float32 at `timestep`, int64, a scalar or [B]."""
        column, settings = timestep.reshape(-1, 1, 1, 1), self.settings
        z_BCHW = clean_from_output(output_BCHW, x_t_BCHW, self.alphas_cumprod_T[column], settings.prediction_type)
        if settings.clip_sample:
            z_BCHW = z_BCHW.clamp(-settings.clip_sample_range, settings.clip_sample_range)
        return consistency(z_BCHW, x_t_BCHW, *boundary_scalings(column.float(), settings.timestep_scaling))

    def next_input(
        self, x_t_BCHW: Tensor, z_BCHW: Tensor, noise_BCHW: Tensor, step: SamplingStep, next_step: SamplingStep
    ) -> Tensor:
        return add_noise(z_BCHW, noise_BCHW, self.alphas_cumprod_T[int(next_step.time)])
