"""What a model folder's scheduler says about sampling: taken over as stock's LCMScheduler takes it, or refused.

`timestep_spacing`, `steps_offset` and `set_alpha_to_one` change no sample of an LCMScheduler in stock diffusers, and
none here. All else that changes one is taken from its configuration, or named in a refusal.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from lasro.config.base import Positive
from lasro.errors import ModelError
from lasro.functional.consistency import boundary_scalings, consistency
from lasro.functional.noise_schedule import add_noise, clean_from_output, lcm_timesteps
from lasro.models.loading import loading
from lasro.validation import explain

TRAIN_TIMESTEPS = 1000


class LcmSettings(BaseModel):
    """What an LCMScheduler's configuration may say. Others of its keys are read where its noise levels are computed."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    num_train_timesteps: Literal[1000]
    """The surrogate and the distillation loss count them too."""
    original_inference_steps: Annotated[int, Field(ge=4, le=TRAIN_TIMESTEPS)]
    """Of the model's distillation; a command draws up to 4 of them."""
    prediction_type: Literal["epsilon", "sample", "v_prediction"]
    timestep_scaling: Positive
    clip_sample: bool
    clip_sample_range: Positive
    thresholding: Literal[False]
    """Dynamic thresholding is made for pixels and suits no latents."""


class LcmSchedule:
    """Noise levels, timesteps and the consistency function of one scheduler configuration."""

    def __init__(self, scheduler: Any, where: str, convert: bool) -> None:
        """Raises ModelError for a scheduler that asks for what is not done here; `where` begins its message.

        One of another class samples by other rules, so it is refused unless `convert`: a UNet that was distilled apart
        from its pipeline is published to be used with `LCMScheduler.from_config(pipeline.scheduler.config)`.
        """
        names = {scheduler.config.get("_class_name", "LCMScheduler"), type(scheduler).__name__}
        if not convert and names != {"LCMScheduler"}:
            raise ModelError(
                f"{where}: got {', '.join(sorted(names - {'LCMScheduler'}))}, expected LCMScheduler; for a consistency "
                'model set model.scheduler = "lcm", or save it with LCMScheduler.from_config(pipeline.scheduler.config)'
            )
        with loading(where):
            self.scheduler: Any = LCMScheduler.from_config(scheduler.config)
        try:
            self.settings = LcmSettings.model_validate(dict(self.scheduler.config))
        except ValidationError as error:
            raise ModelError(f"{where}: {explain(error, LcmSettings)}") from error
        self.alphas_cumprod_T: Tensor = self.scheduler.alphas_cumprod
        self._check_noise_levels(where)

    def _check_noise_levels(self, where: str) -> None:
        abar_T = self.alphas_cumprod_T
        if len(abar_T) != TRAIN_TIMESTEPS or not ((abar_T >= 0) & (abar_T <= 1)).all():
            raise ModelError(f"{where}: trained_betas: got {len(abar_T)}, expected {TRAIN_TIMESTEPS} between 0 and 1")
        if self.settings.prediction_type == "epsilon" and (abar_T == 0).any():
            raise ModelError(
                f"{where}: rescale_betas_zero_snr: got a last timestep that is all noise, of which prediction_type = "
                "'epsilon' tells nothing; expected 'v_prediction' or 'sample', or rescale_betas_zero_snr = false"
            )

    def to(self, device: torch.device) -> LcmSchedule:
        """With its noise levels on the device."""
        self.alphas_cumprod_T = self.alphas_cumprod_T.to(device)
        return self

    def timesteps(self, num_steps: int, chosen: tuple[int, ...] | None = None) -> list[int]:
        """Of `num_steps` consistency steps, largest first: the first of those `chosen`, else the schedule's own.

        Stock's `set_timesteps(timesteps=...)` takes any that fall, on the distillation's grid or not. Raises ModelError
        for more steps than are chosen.
        """
        if chosen is not None:
            if num_steps > len(chosen):
                raise ModelError(
                    f"timesteps: got {list(chosen)} for {num_steps} steps, expected 1 or 2 steps; leave timesteps out "
                    "for more"
                )
            return list(chosen[:num_steps])
        return lcm_timesteps(num_steps, TRAIN_TIMESTEPS, self.settings.original_inference_steps)

    def predict(self, output_BCHW: Tensor, x_t_BCHW: Tensor, timestep: Tensor) -> Tensor:
        """f_theta of the network's output float32 at `timestep`, int64, a scalar or [B]."""
        column, settings = timestep.reshape(-1, 1, 1, 1), self.settings
        z_BCHW = clean_from_output(output_BCHW, x_t_BCHW, self.alphas_cumprod_T[column], settings.prediction_type)
        if settings.clip_sample:
            z_BCHW = z_BCHW.clamp(-settings.clip_sample_range, settings.clip_sample_range)
        return consistency(z_BCHW, x_t_BCHW, *boundary_scalings(column.float(), settings.timestep_scaling))

    def add_noise(self, z_BCHW: Tensor, noise_BCHW: Tensor, timestep: int | Tensor) -> Tensor:
        """Clean latents diffused to `timestep`, one for all or int64 [B]."""
        abar = self.alphas_cumprod_T[timestep]
        return add_noise(z_BCHW, noise_BCHW, abar.reshape(-1, 1, 1, 1) if abar.ndim else abar)
