"""The loss that a latent consistency model was distilled by, against its frozen diffusion teacher.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from lasro.errors import ModelError
from lasro.functional.generator_loss import lcm_distillation
from lasro.functional.noise_schedule import lcm_timesteps

if TYPE_CHECKING:
    from lasro.models.lcm import LatentConsistencyModel

SOLVER_STEPS = 50


class LcmTeacher:
    """The frozen diffusion UNet that `model` was distilled from: a UNet folder or hub id, or a pipeline's."""

    def __init__(self, model: LatentConsistencyModel, path: str) -> None:
        self.model = model
        self.timesteps = lcm_timesteps(SOLVER_STEPS)[::-1]
        subfolder = "unet" if Path(path, "unet").is_dir() else None
        try:
            unet = UNet2DConditionModel.from_pretrained(path, subfolder=subfolder, dtype=model.unet.dtype)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(f"{path}: cannot be loaded as the teacher's UNet ({error})") from error
        self.unet: Any = unet.requires_grad_(False).eval()
        nn.Module.to(self.unet, model.device)

    @torch.no_grad()
    def outputs(self, x_t_BCHW: Tensor, timestep: int, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Conditional and unconditional outputs [B, C, H, W], float32."""
        arguments = self.model.unet_arguments(self.model.embed([*prompts, *([""] * len(prompts))]))
        arguments.pop("timestep_cond", None)
        both = torch.cat([x_t_BCHW, x_t_BCHW]).to(self.unet.dtype)
        conditional, unconditional = self.unet(both, timestep, **arguments).sample.float().chunk(2)
        return conditional, unconditional

    def loss(self, z_BCHW: Tensor, noise_BCHW: Tensor, index: int, prompts: Sequence[str]) -> Tensor:
        """L_lcm from solver step `index` (1 to 49, counted from the clean end) to the one before; a scalar."""
        model, conditioning = self.model, self.model.embed(prompts)
        return lcm_distillation(
            z_BCHW,
            noise_BCHW,
            self.timesteps[index],
            self.timesteps[index - 1],
            torch.tensor(model.settings.guidance, device=model.device),
            lambda x, t: model.predict_at(x, t, conditioning),
            lambda x, t: self.outputs(x, t, prompts),
            model.alphas_cumprod_T,
            model.pipeline.scheduler.config.prediction_type,
        )
