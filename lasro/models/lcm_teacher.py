"""The frozen diffusion UNet that a latent consistency model was distilled from.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lasro.models.load_unet import load_unet
from lasro.models.loading import loading


class TeacherUNet:
    """A teacher from a UNet's folder, file or hub id, or from a pipeline's folder."""

    def __init__(self, path: str, dtype: torch.dtype, device: torch.device) -> None:
        """Raises ModelError for one that cannot be loaded."""
        where = f"teacher {path}"
        unet = load_unet(path, where, dtype)
        self.unet: Any = unet.requires_grad_(False).eval()
        with loading(where):
            nn.Module.to(self.unet, device)

    @torch.no_grad()
    def outputs(self, x_t_BCHW: Tensor, timesteps_B: Tensor, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Conditional and unconditional outputs [B, C, H, W], float32.

        `arguments` are the student's for B prompts and B empty ones; a teacher has no guidance embedding.
        """
        own = {name: value for name, value in arguments.items() if name != "timestep_cond"}
        both = torch.cat([x_t_BCHW, x_t_BCHW]).to(self.unet.dtype)
        conditional, unconditional = self.unet(both, timesteps_B.repeat(2), **own).sample.float().chunk(2)
        return conditional, unconditional
