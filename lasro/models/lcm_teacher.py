"""The frozen diffusion UNet that a latent consistency model was distilled from.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from lasro.errors import ModelError
from lasro.models.base import LOADING_ERRORS


class TeacherUNet:
    """A teacher from a UNet's folder or hub id, or from a pipeline's folder."""

    def __init__(self, path: str, dtype: torch.dtype, device: torch.device) -> None:
        """Raises ModelError for one that cannot be loaded."""
        subfolder = "unet" if Path(path, "unet").is_dir() else None
        try:
            unet = UNet2DConditionModel.from_pretrained(path, subfolder=subfolder, dtype=dtype)
        except LOADING_ERRORS as error:
            raise ModelError(f"{path}: cannot be loaded as the teacher's UNet ({error})") from error
        self.unet: Any = unet.requires_grad_(False).eval()
        nn.Module.to(self.unet, device)

    @torch.no_grad()
    def outputs(self, x_t_BCHW: Tensor, timestep: int, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Conditional and unconditional outputs [B, C, H, W], float32.

        `arguments` are the student's for B prompts and B empty ones; a teacher has no guidance embedding.
        """
        own = {name: value for name, value in arguments.items() if name != "timestep_cond"}
        both = torch.cat([x_t_BCHW, x_t_BCHW]).to(self.unet.dtype)
        conditional, unconditional = self.unet(both, timestep, **own).sample.float().chunk(2)
        return conditional, unconditional
