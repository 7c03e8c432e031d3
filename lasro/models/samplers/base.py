"""What a UNet generator asks of its sampler: steps, their inputs, and what the network's output says at each.

Latents are those of the variance-preserving diffusion, x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, for every
sampler: that is what networks of this kind are fed with, also by stock schedulers that count in other coordinates. A
sampler keeps no state between steps. Its numbers come from a stock scheduler, whose configuration it takes over or
refuses.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from lasro.errors import ModelError
from lasro.functional.noise_schedule import add_noise, clean_from_output, noise_from_output
from lasro.functional.trajectory import mix, noisy_step, unmix
from lasro.models.conditioning import SamplingStep
from lasro.models.loading import loading
from lasro.validation import explain

TRAIN_TIMESTEPS = 1000
Prediction = Literal["epsilon", "sample", "v_prediction"]


class SchedulerSettings(BaseModel):
    """What a scheduler's configuration may say; keys that change no sample are not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    num_train_timesteps: Literal[1000]
    """The surrogate and the distillation loss count them too."""
    prediction_type: Prediction


class Sampler(ABC):
    """Of one stock scheduler's configuration."""

    stock_class: ClassVar[Any]
    """The scheduler, of diffusers."""
    settings_class: ClassVar[type[SchedulerSettings]]
    converted: ClassVar[Mapping[str, Any]] = {}
    """What of another scheduler's configuration is replaced when this one is made from it."""
    takes_timesteps: ClassVar[bool] = False
    """Whether stock `set_timesteps` takes `timesteps=`."""
    adds_noise: bool = True
    """Whether two samples of the same first noise differ."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        """Raises ModelError, beginning with `where`, for a configuration that asks for what is not done here."""
        with loading(where):
            self.scheduler: Any = self.stock_class.from_config(config)
        try:
            self.settings = self.settings_class.model_validate(dict(self.scheduler.config))
        except ValidationError as error:
            raise ModelError(f"{where}: {explain(error, self.settings_class)}") from error
        self.alphas_cumprod_T: Tensor = self.scheduler.alphas_cumprod
        self._check_noise_levels(where)

    def _check_noise_levels(self, where: str) -> None:
        abar_T = self.alphas_cumprod_T
        if len(abar_T) != TRAIN_TIMESTEPS or not ((abar_T >= 0) & (abar_T <= 1)).all():
            raise ModelError(f"{where}: trained_betas: got {len(abar_T)}, expected {TRAIN_TIMESTEPS} between 0 and 1")
        no_signal = (abar_T == 0).any() or self.scheduler.config.get("rescale_betas_zero_snr")
        if self.settings.prediction_type == "epsilon" and no_signal:
            raise ModelError(
                f"{where}: rescale_betas_zero_snr: got a last timestep that is all noise, of which prediction_type = "
                "'epsilon' tells nothing; expected 'v_prediction' or 'sample', or rescale_betas_zero_snr = false"
            )

    @property
    def name(self) -> str:
        """Of the stock scheduler."""
        return self.stock_class.__name__

    def to(self, device: torch.device) -> Self:
        """With its noise levels on the device."""
        self.alphas_cumprod_T = self.alphas_cumprod_T.to(device)
        return self

    @abstractmethod
    def steps(self, num_steps: int, timesteps: tuple[int, ...] | None) -> tuple[SamplingStep, ...]:
        """Of `num_steps`, noisiest first: the first of these `timesteps`, None for the scheduler's own.

        Raises ModelError for more steps than there are.
        """

    def first_input(self, noise_BCHW: Tensor, step: SamplingStep) -> Tensor:
        """As `GeneratorModel.first_input`."""
        return noise_BCHW

    @abstractmethod
    def clean(self, output_BCHW: Tensor, x_t_BCHW: Tensor, step: SamplingStep) -> Tensor:
        """Where stock sampling would end if `step` were its last, by the network's output, float32."""

    @abstractmethod
    def next_input(
        self, x_t_BCHW: Tensor, z_BCHW: Tensor, noise_BCHW: Tensor, step: SamplingStep, next_step: SamplingStep
    ) -> Tensor:
        """As `GeneratorModel.next_input`."""

    def diffuse(self, z_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Clean latents diffused to `timesteps_B` int64, 0 to 999."""
        return add_noise(z_BCHW, noise_BCHW, self.alphas_cumprod_T[timesteps_B].reshape(-1, 1, 1, 1))


@dataclass(frozen=True)
class TrajectoryStep(SamplingStep):
    """A step whose input has the share `abar` of clean latents in its variance."""

    abar: float


class TrajectorySampler(Sampler):
    """One whose steps go down a diffusion trajectory: all but consistency sampling."""

    end_abar: float = 1.0
    """Of the sample that a last step ends with; below 1 where stock leaves a trace of noise in it."""

    @abstractmethod
    def added_noise(self, step: TrajectoryStep, next_step: TrajectoryStep) -> float:
        """Standard deviation of the noise that is new in the input of `next_step`."""

    def clean(self, output_BCHW: Tensor, x_t_BCHW: Tensor, step: SamplingStep) -> Tensor:
        assert isinstance(step, TrajectoryStep)
        abar, kind = torch.tensor(step.abar, dtype=torch.float64), self.settings.prediction_type
        x_0_BCHW = clean_from_output(output_BCHW, x_t_BCHW, abar, kind)
        if self.end_abar == 1:
            return x_0_BCHW
        return mix(x_0_BCHW, noise_from_output(output_BCHW, x_t_BCHW, abar, kind), self.end_abar)

    def next_input(
        self, x_t_BCHW: Tensor, z_BCHW: Tensor, noise_BCHW: Tensor, step: SamplingStep, next_step: SamplingStep
    ) -> Tensor:
        assert isinstance(step, TrajectoryStep)
        assert isinstance(next_step, TrajectoryStep)
        x_0_BCHW, noise_hat_BCHW = unmix(x_t_BCHW, z_BCHW, step.abar, self.end_abar)
        std = self.added_noise(step, next_step)
        return noisy_step(x_0_BCHW, noise_hat_BCHW, noise_BCHW, next_step.abar, std)


def first_of(timesteps: tuple[int, ...], num_steps: int) -> list[int]:
    """The first of chosen timesteps; raises ModelError for more steps than are chosen."""
    if num_steps > len(timesteps):
        raise ModelError(
            f"timesteps: got {list(timesteps)} for {num_steps} steps, expected at most {len(timesteps)} steps; leave "
            "timesteps out for more"
        )
    return list(timesteps[:num_steps])


def check_grid(num_steps: int, most: int) -> None:
    """Raise ModelError for more steps than the grid has that a model was distilled on."""
    if num_steps > most:
        raise ModelError(f"steps: got {num_steps}, expected at most {most}, the scheduler's original steps")
