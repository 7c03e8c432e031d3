"""The surrogate reward R_psi(z, c): a part of the generator's network with a CNN head, on noise-augmented latents.

The network may be that of another model of the same latent space, `surrogate.backbone`.

Source: LaSRO (Jia et al., arXiv 2411.15247), stage 1. The augmentation is ours: the latent is diffused to a small
random timestep, in training and in use, which keeps the gradient from finding adversarial latents.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lasro.config import SurrogateSettings
from lasro.errors import WireError
from lasro.models.backbone import check_is_trunk
from lasro.models.base import GeneratorModel
from lasro.models.compiled import compile_network
from lasro.models.conditioning import Conditioning
from lasro.models.device import autocast, device_memory
from lasro.models.initial_weights import drawn_from
from lasro.wire import unpack_tensors

MEMORY_ADVICE = 'set surrogate.trunk = "adapter", or model.dtype = "bfloat16"'
HEAD_GROUPS = 16
HEAD_GRID = 4


def draw_augmentation(
    shape_BCHW: Sequence[int], max_timestep: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Timesteps [B] int64 below `max_timestep` and noise [B, C, H, W] float32, drawn on the generator's device."""
    timesteps_B = torch.randint(0, max_timestep, (shape_BCHW[0],), generator=generator, device=generator.device)
    return timesteps_B, torch.randn(tuple(shape_BCHW), generator=generator, device=generator.device)


def cnn_head(in_channels: int, channels: int) -> nn.Sequential:
    """Feature map to one score; feature maps over 4x4 are averaged down to it first."""
    return nn.Sequential(
        nn.GroupNorm(HEAD_GROUPS, in_channels),
        nn.Conv2d(in_channels, channels, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(HEAD_GRID),
        nn.Flatten(),
        nn.Linear(channels * HEAD_GRID**2, 1),
    )


class SurrogateReward(nn.Module):
    """R_psi(z, c). Several may share one frozen UNet; what each trains is its own."""

    def __init__(self, model: GeneratorModel, settings: SurrogateSettings) -> None:
        """Raises ModelError for a generator where the settings name a backbone, which `trunk_of` loads."""
        super().__init__()
        check_is_trunk(model, settings.backbone)
        self.model, self.settings = model, settings
        self.trunk = model.feature_extractor()
        with drawn_from(settings.seed):
            if settings.trunk == "full":
                self.trunk.train_blocks()
            else:
                self.trunk.add_adapters(settings.adapter_rank)
            self.head = cnn_head(self.trunk.out_channels, settings.head_channels)
        self.to(model.device)
        if model.settings.compile:
            compile_network(self.trunk)

    def forward(
        self,
        latents_BCHW: Tensor,
        timesteps_B: Tensor,
        noise_BCHW: Tensor,
        conditioning: Conditioning,
        dtype: str = "none",
    ) -> Tensor:
        """Scores [B] float32 of clean latents, diffused to `timesteps_B` by `noise_BCHW`. `dtype`: autocast."""
        x_t = self.model.diffuse(latents_BCHW.float(), noise_BCHW, timesteps_B)
        with autocast(self.model.device, dtype):
            features = self.trunk(x_t, timesteps_B, conditioning.float())
        return self.head(features.float())[:, 0]

    def trained_state(self) -> dict[str, Tensor]:
        """Copies of what is trained, float32 on the CPU: adapters or trunk blocks, and the head."""
        trained = {name: p for name, p in self.named_parameters() if p.requires_grad}
        return {name: p.detach().to("cpu", torch.float32, copy=True).contiguous() for name, p in trained.items()}

    def load_trained(self, state: dict[str, Tensor]) -> None:
        """Take over a `trained_state` (float16 or float32); raises WireError naming what does not fit."""
        own = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if own.keys() != state.keys():
            odd = sorted(own.keys() ^ state.keys())
            raise WireError(
                f"surrogate weights: {len(odd)} names differ, first {odd[0]}; expected those of trunk = "
                f'"{self.settings.trunk}" for this model'
            )
        for name, parameter in own.items():
            if state[name].shape != parameter.shape:
                got, expected = tuple(state[name].shape), tuple(parameter.shape)
                raise WireError(f"surrogate weights: {name} has shape {got}, expected {expected}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(state[name])

    def load_safetensors(self, body: bytes) -> None:
        """Take over a `trained_state` that was written as safetensors; raises WireError for one that does not fit."""
        tensors, _ = unpack_tensors(body)
        self.load_trained({name: torch.from_numpy(array) for name, array in tensors.items()})


def build_surrogate(model: GeneratorModel, settings: SurrogateSettings) -> SurrogateReward:
    """An untrained surrogate over `model`'s frozen network; raises DeviceMemoryError."""
    with device_memory(f'a surrogate with trunk = "{settings.trunk}"', MEMORY_ADVICE):
        return SurrogateReward(model, settings)


def score_and_gradient(
    surrogate: SurrogateReward,
    latents_BCHW: Tensor,
    timesteps_B: Tensor,
    noise_BCHW: Tensor,
    conditioning: Conditioning,
    dtype: str = "none",
) -> tuple[Tensor, Tensor]:
    """Scores [B] and d score_b / d latents_b [B, C, H, W], float32, without touching any .grad."""
    leaf = latents_BCHW.detach().float().requires_grad_()
    with torch.enable_grad():
        scores_B = surrogate(leaf, timesteps_B, noise_BCHW, conditioning, dtype)
        (gradient_BCHW,) = torch.autograd.grad(scores_B.sum(), leaf)
    return scores_B.detach(), gradient_BCHW
