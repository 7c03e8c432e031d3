"""The baselines: what a user of diffusers and peft writes for the same work, eagerly, with nothing of ours in it.

Shape legend: B batch, C latent channels, H, W latent height and width, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, mse_loss
from torch.nn.utils import clip_grad_norm_

BETAS = (0.9, 0.99)


def stock_pipeline(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Of the folder, with its own scheduler, as its model card would load it."""
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(folder, torch_dtype=dtype, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _unet(folder: Path, dtype: torch.dtype, device: torch.device, rank: int, targets: Sequence[str]) -> Any:
    unet: Any = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype)
    unet.requires_grad_(False).to(device)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets)))
    cast_training_params(unet)
    unet.enable_gradient_checkpointing()
    return unet


class LoraStep:
    """An update of a LoRA through both steps of an LCM, held at the base, given what a reward's gradient is."""

    def __init__(
        self, folder: Path, dtype: torch.dtype, device: torch.device, rank: int, targets: Sequence[str]
    ) -> None:
        self.unet = _unet(folder, dtype, device, rank, targets)
        self.scheduler: Any = LCMScheduler.from_pretrained(folder / "scheduler")
        self.device, self.dtype = device, dtype
        self.scheduler.set_timesteps(2)
        self.timesteps: list[int] = self.scheduler.timesteps.tolist()
        self.parameters = [each for each in self.unet.parameters() if each.requires_grad]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-4, betas=BETAS, weight_decay=0.0)

    def __call__(self, noises: Sequence[Tensor], slope_BCHW: Tensor, arguments: dict[str, Any]) -> None:
        """`arguments`: keywords of the UNet."""
        x_t_BCHW, loss = noises[0], torch.zeros((), device=self.device)
        for index, timestep in enumerate(self.timesteps):
            z_BCHW = self._clean(x_t_BCHW, timestep, arguments)
            self.unet.disable_adapters()
            with torch.no_grad():
                z_base_BCHW = self._clean(x_t_BCHW, timestep, arguments)
            self.unet.enable_adapters()
            loss = loss + mse_loss(z_BCHW, z_base_BCHW) - (z_BCHW * slope_BCHW).flatten(1).sum(1).mean()
            if index == 0:
                later = torch.full((len(z_BCHW),), self.timesteps[1], device=self.device)
                x_t_BCHW = self.scheduler.add_noise(z_BCHW.detach(), noises[1], later)
        self.optimiser.zero_grad()
        loss.backward()
        clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()

    def _clean(self, x_t_BCHW: Tensor, timestep: int, arguments: dict[str, Any]) -> Tensor:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype == torch.bfloat16):
            output_BCHW = self.unet(x_t_BCHW, timestep, **arguments).sample.float()
        c_skip, c_out = self.scheduler.get_scalings_for_boundary_condition_discrete(timestep)
        abar = self.scheduler.alphas_cumprod[timestep].item()
        return c_skip * x_t_BCHW + c_out * (x_t_BCHW - (1 - abar) ** 0.5 * output_BCHW) / abar**0.5


class SurrogateStep:
    """A Bradley-Terry step of a LoRA on a UNet's encoder with a head on its features."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: torch.device, rank: int, head: nn.Module) -> None:
        self.unet = _unet(folder, dtype, device, rank, _encoder_layers(folder))
        self.unet.up_blocks = nn.ModuleList()
        self.unet.conv_norm_out, self.unet.conv_out = None, nn.Identity()
        self.head, self.device, self.dtype = head.to(device), device, dtype
        self.parameters = [*(each for each in self.unet.parameters() if each.requires_grad), *self.head.parameters()]
        self.optimiser = torch.optim.AdamW(self.parameters, lr=1e-4, betas=BETAS)

    def __call__(self, x_t_BCHW: Tensor, timesteps_B: Tensor, arguments: dict[str, Any]) -> None:
        """The first half of the batch won against the second."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype == torch.bfloat16):
            features = self.unet(x_t_BCHW, timesteps_B, **arguments).sample
        winners_P, losers_P = self.head(features.float())[:, 0].chunk(2)
        self.optimiser.zero_grad()
        (-logsigmoid(winners_P - losers_P).mean()).backward()
        clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()


def _encoder_layers(folder: Path) -> list[str]:
    config: Any = UNet2DConditionModel.load_config(folder / "unet")
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(config)
    parts = ("conv_in", "down_blocks", "mid_block")
    layers = (nn.Linear, nn.Conv2d)
    return [name for name, each in unet.named_modules() if name.split(".")[0] in parts and isinstance(each, layers)]
