"""A consistency model that is a straight line, so that gradients, likelihoods and gains are known in closed form.

    f_theta(x_t, t, c) = slope x_t + theta        theta [C, H, W] is all that is trained; the base's is 0

Sampled as an LCM with a cosine schedule, in any number of steps. Shape legend: B batch, C, H, W latent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lasro.config import LoraSettings, ModelSettings, RunSettings
from lasro.functional.generator_loss import lcm_distillation
from lasro.functional.noise_schedule import add_noise, lcm_timesteps, solver_pairs
from lasro.methods.registry import create_trainer
from lasro.models.adapter import AdapterKeys
from lasro.models.base import GeneratorModel
from lasro.models.conditioning import Conditioning, SamplingStep
from lasro.models.distillation import SOLVER_STEPS, DistillationLoss
from lasro.models.feature_extractor import FeatureExtractor
from lasro.training.distributed import DistributedContext
from lasro.training.generator_trainer import GeneratorTrainer


class ToyGenerator(GeneratorModel):
    lora_targets = ()

    def __init__(self, slope: float = 0.5, shape: tuple[int, int, int] = (2, 4, 4)) -> None:
        self.settings, self.device, self.slope = ModelSettings(device="cpu"), torch.device("cpu"), slope
        self.latent_shape, self.image_size = shape, shape[1:]
        self.theta = nn.Parameter(torch.zeros(shape))
        times_T = torch.arange(1000)
        self.alphas_cumprod_T = (0.999 * torch.cos(times_T / 1000 * math.pi / 2) ** 2 + 1e-4).float()

    @classmethod
    def load(cls, path: str, settings: ModelSettings) -> ToyGenerator:
        return cls()

    def embed(self, prompts: Sequence[str], base: bool = False) -> Conditioning:
        return Conditioning({"none": torch.zeros(len(prompts), 1)})

    def steps(self, num_steps: int) -> tuple[SamplingStep, ...]:
        return tuple(SamplingStep(index, time) for index, time in enumerate(lcm_timesteps(num_steps)))

    def predict_clean(
        self, x_t_BCHW: Tensor, step: SamplingStep, conditioning: Conditioning, base: bool = False
    ) -> Tensor:
        return self.slope * x_t_BCHW + (0 if base else self.theta)

    def check_consistency(self, wanted_by: str) -> None:
        pass

    def predict_at(
        self, x_t_BCHW: Tensor, timestep: int | Tensor, conditioning: Conditioning, base: bool = False
    ) -> Tensor:
        return self.slope * x_t_BCHW + (0 if base else self.theta)

    def distillation_loss(self, teacher: str | None) -> DistillationLoss:
        t_N, s_N = solver_pairs(SOLVER_STEPS)

        def loss(
            z_BCHW: Tensor,
            noise_BCHW: Tensor,
            steps_B: Tensor,
            prompts: Sequence[str],
            recompute: bool = False,
            weights_B: Tensor | None = None,
        ) -> Tensor:
            def consistency(x_t: Tensor, t_B: Tensor) -> Tensor:
                return torch.where((t_B == 0)[:, None, None, None], x_t, self.slope * x_t + self.theta)

            pairs, w = (t_N[steps_B], s_N[steps_B]), torch.tensor(1.0)
            return lcm_distillation(
                z_BCHW, noise_BCHW, *pairs, w, consistency, None, self.alphas_cumprod_T, weights_B=weights_B
            )

        return loss

    def next_input(
        self, x_t_BCHW: Tensor, z_BCHW: Tensor, noise_BCHW: Tensor, step: SamplingStep, next_step: SamplingStep
    ) -> Tensor:
        return add_noise(z_BCHW, noise_BCHW, self.alphas_cumprod_T[int(next_step.time)])

    def diffuse(self, z_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        return add_noise(z_BCHW, noise_BCHW, self.alphas_cumprod_T[timesteps_B].reshape(-1, 1, 1, 1))

    def add_lora(self, settings: LoraSettings, seed: int) -> list[nn.Parameter]:
        return [self.theta]

    # --- nothing below is used --------------------------------------------------------------------------------

    def decode_pixels(self, latents_BCHW: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, latents_BCHW: Tensor, mixed: bool = False) -> np.ndarray:
        raise NotImplementedError

    def encode(self, images_BhwC: np.ndarray) -> Tensor:
        raise NotImplementedError

    def feature_extractor(self) -> FeatureExtractor:
        raise NotImplementedError

    def save_lora(self, folder: Path, settings: LoraSettings) -> Path:
        raise NotImplementedError

    def initial_lora(self, path: Path, settings: LoraSettings) -> list[Tensor]:
        raise NotImplementedError

    def load_lora(self, path: Path, partial: bool = False) -> AdapterKeys:
        raise NotImplementedError

    def save_fused(self, folder: Path, dtype: Any = None) -> None:
        raise NotImplementedError


def toy_trainer(
    method: dict[str, Any],
    model: ToyGenerator | None = None,
    peers: DistributedContext | None = None,
    **train: Any,
) -> GeneratorTrainer:
    """Of a toy generator, a method and settings of `[train]`."""
    config = RunSettings.model_validate(
        {
            "name": "toy",
            "prompts": {"train": "unused", "held_out": "unused"},
            "rewards": [{"name": "any"}],
            "method": method,
            "train": {"warmup_steps": 1, "generator_steps": 2, "batch_size": 8, "learning_rate": 0.02} | train,
        }
    )
    return create_trainer(config, model or ToyGenerator(), peers)
