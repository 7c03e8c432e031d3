"""The LCM distillation loss as a regulariser: needs a teacher UNet and clean latents with their prompts.

Shape legend: N stored latents, B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lasro.config import AscentSettings
from lasro.errors import ConfigError
from lasro.functional.consistency import lcm_timesteps
from lasro.functional.generator_loss import lcm_distillation
from lasro.models.sdxl import TwoStepModel, load_teacher
from lasro.wire import unpack_prompts, unpack_tensors

SOLVER_STEPS = 50
BATCH = 8


class LcmRegulariser:
    """L_lcm of random stored latents at random solver steps; the guidance is the one that the model is sampled at."""

    def __init__(self, model: TwoStepModel, settings: AscentSettings) -> None:
        assert settings.teacher is not None
        assert settings.teacher_latents is not None
        self.model = model
        self.teacher = load_teacher(model, settings.teacher)
        try:
            tensors, metadata = unpack_tensors(settings.teacher_latents.read_bytes())
        except OSError as error:
            raise ConfigError(f"method.teacher_latents: {settings.teacher_latents} ({error.strerror})") from error
        latents = tensors.get("latents")
        if latents is None or latents.shape[1:] != model.latent_shape:
            got = None if latents is None else latents.shape[1:]
            raise ConfigError(f"method.teacher_latents: got latents {got}, expected [N, *{model.latent_shape}]")
        self.latents_NCHW = torch.from_numpy(latents).float()
        self.prompts = unpack_prompts(metadata, len(latents))
        self.timesteps = lcm_timesteps(SOLVER_STEPS)[::-1]

    def loss(self, generator: torch.Generator) -> Tensor:
        """Scalar; its gradient reaches the adapter of `model.unet` only."""
        model = self.model
        rows = torch.randint(0, len(self.latents_NCHW), (BATCH,), generator=generator)
        step = int(torch.randint(1, SOLVER_STEPS, (), generator=generator))
        z = self.latents_NCHW[rows].to(model.device)
        noise = torch.randn(z.shape, generator=generator).to(model.device)
        prompts = [self.prompts[row] for row in rows.tolist()]
        conditioning = model.embed(prompts)
        return lcm_distillation(
            z,
            noise,
            self.timesteps[step],
            self.timesteps[step - 1],
            torch.tensor(model.settings.guidance, device=model.device),
            lambda x, t: model.predict_clean(x, t, conditioning),
            lambda x, t: self.teacher(x, t, prompts),
            model.alphas_cumprod_T,
            model.pipeline.scheduler.config.prediction_type,
        )
