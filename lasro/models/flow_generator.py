"""Few-step transformers of flow matching: what those families share that Euler's method samples.

A sampler's time is the noise level sigma, 0 (clean) to 1 (noise).

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from lasro.errors import ModelError
from lasro.functional.flow import add_flow_noise, clean_from_velocity, euler_step
from lasro.models.conditioning import SamplingStep
from lasro.models.loading import loading
from lasro.models.transformer_generator import TransformerGenerator
from lasro.models.unet_checks import chosen_size
from lasro.validation import explain

LAST_TIMESTEP = 999
TRAIN_TIMESTEPS = 1000


class FlowSettings(BaseModel):
    """What a FlowMatchEulerDiscreteScheduler may say; of other keys its own `set_timesteps` makes the noise levels."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    num_train_timesteps: Literal[1000]
    """The network is told a noise level in thousandths."""
    invert_sigmas: Literal[False] = False
    """Inverted, 0 is noise."""
    stochastic_sampling: Literal[False] = False
    """What has no noise added in stock has none here."""


class FlowGenerator(TransformerGenerator):
    """Sampled as diffusers' FlowMatchEulerDiscreteScheduler does: no noise is added after the first."""

    adds_noise = False

    def check_parts(self) -> None:
        try:
            FlowSettings.model_validate(dict(self.pipeline.scheduler.config))
        except ValidationError as error:
            raise ModelError(f"scheduler: {explain(error, FlowSettings)}") from error

    @abstractmethod
    def shift(self, num_steps: int) -> float:
        """The stock pipeline's mu, by which a scheduler that shifts dynamically goes."""

    def steps(self, num_steps: int) -> tuple[SamplingStep, ...]:
        if num_steps < 1:
            raise ModelError(f"steps: got {num_steps}, expected at least 1")
        scheduler: Any = copy.deepcopy(self.pipeline.scheduler)
        where = f"model.path {self.settings.path}: scheduler"
        levels = np.linspace(1.0, 1 / num_steps, num_steps).tolist()
        with loading(where):
            scheduler.set_timesteps(sigmas=levels, mu=self.shift(num_steps))
        times: list[float] = scheduler.sigmas[:-1].tolist()
        if not all(0 < time <= 1 for time in times):
            raise ModelError(f"{where}: got noise levels {times} for {num_steps} steps, expected them in 0 to 1")
        return tuple(SamplingStep(index, time) for index, time in enumerate(times))

    def clean(self, output_BCHW: Tensor, x_t_BCHW: Tensor, time: Tensor) -> Tensor:
        return clean_from_velocity(output_BCHW, x_t_BCHW, time)

    def next_input(
        self, x_t_BCHW: Tensor, z_BCHW: Tensor, noise_BCHW: Tensor, step: SamplingStep, next_step: SamplingStep
    ) -> Tensor:
        sigma, next_sigma = torch.tensor([step.time, next_step.time], device=z_BCHW.device)
        return euler_step(x_t_BCHW, z_BCHW, sigma, next_sigma)

    def diffuse(self, z_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        return add_flow_noise(z_BCHW, noise_BCHW, self.time_of(timesteps_B).reshape(-1, 1, 1, 1))

    def time_of(self, timesteps_B: Tensor) -> Tensor:
        return timesteps_B.float() / LAST_TIMESTEP

    def check_sizes(self, *sizes: tuple[str, object, object]) -> None:
        """Raises ModelError for the first of (name, got, expected) of the transformer that does not fit."""
        for name, got, expected in sizes:
            if got != expected:
                raise ModelError(f"transformer: got {name} {got}, expected {expected} for its VAE and text encoder")

    def size(self, multiple: int) -> tuple[int, int]:
        """h, w in pixels: what is asked for, else the side of the VAE's images; raises ModelError."""
        side = self.pipeline.vae.config.sample_size
        if not isinstance(side, int) or side <= 0:
            raise ModelError(f"vae: got sample_size {side!r}, expected the side of images in pixels")
        return chosen_size((side, side), multiple, self.settings)
