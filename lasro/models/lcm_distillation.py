"""The loss that a latent consistency model was distilled by, and the frozen diffusion UNet that it was distilled from.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lasro.errors import ModelError
from lasro.functional.generator_loss import lcm_distillation
from lasro.functional.noise_schedule import solver_pairs
from lasro.models.distillation import SOLVER_STEPS, DistillationLoss
from lasro.models.load_unet import load_unet
from lasro.models.loading import loading
from lasro.models.samplers.lcm import LcmSampler

if TYPE_CHECKING:
    from lasro.models.unet_generator import UNetGenerator


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


def lcm_loss(model: UNetGenerator, sampler: LcmSampler, teacher: str | None) -> DistillationLoss:
    """As `GeneratorModel.distillation_loss`."""
    if (steps := sampler.settings.original_inference_steps) != SOLVER_STEPS:
        raise ModelError(
            f"teacher: got a model of original_inference_steps {steps}, expected {SOLVER_STEPS}; leave it out"
        )
    unet = None if teacher is None else TeacherUNet(teacher, model.unet.dtype, model.device)
    t_N, s_N = (timesteps.to(model.device) for timesteps in solver_pairs(SOLVER_STEPS))

    def outputs(prompts: Sequence[str]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """The teacher's for these prompts."""
        if unet is None:
            return None
        arguments = model.unet_arguments(model.embed([*prompts, *([""] * len(prompts))]))
        return partial(unet.outputs, arguments=arguments)

    def loss(
        z_BCHW: Tensor,
        noise_BCHW: Tensor,
        steps_B: Tensor,
        prompts: Sequence[str],
        recompute: bool = False,
        weights_B: Tensor | None = None,
    ) -> Tensor:
        """L_lcm from each solver step to the one before."""
        conditioning = model.embed(prompts)
        predict = partial(checkpoint, model.predict_at, use_reentrant=False) if recompute else model.predict_at
        return lcm_distillation(
            z_BCHW,
            noise_BCHW,
            t_N[steps_B],
            s_N[steps_B],
            torch.tensor(model.settings.guidance, device=model.device),
            lambda x_t, t: predict(x_t, t, conditioning),
            outputs(prompts),
            sampler.alphas_cumprod_T,
            sampler.settings.prediction_type,
            weights_B,
        )

    return loss
