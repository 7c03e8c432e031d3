"""Stage 1: the f8 autoencoder, whose latent space everything later lives in.

The decoder learns from the posterior's mean and noise of a set size, never from the posterior's own standard deviation:
left to itself, that grew tenfold in one run and everything stalled. What is exported has a fixed standard deviation.

Shape legend: B images, C latent channels, H, W pixels or latent cells.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from tiny_recipe.config import Recipe, VaeSettings
from tiny_recipe.data import TrainingData
from tiny_recipe.drawing import Drawn
from tiny_recipe.networks import LATENT_CHANNELS, decode, encode, frozen, new_vae, on
from tiny_recipe.reporting import pixels, row_above_row, save_grid
from tiny_recipe.speed import compiled
from tiny_recipe.stage import Stage
from tiny_recipe.work_dir import WorkDir

OUTLINE_PX = 5  # object pixels are taken to reach half of this beyond the object: outlines matter
MEAN_PX = 4  # side of the means whose error is the low-frequency loss
MEASURED_IMAGES = 512


class FrozenVae(NamedTuple):
    """A finished autoencoder and the factor by which its latents have standard deviation 1."""

    network: AutoencoderKL
    scaling_factor: float


def vae_stage(recipe: Recipe, data: TrainingData, device: torch.device) -> Stage:
    settings, vae = recipe.vae, on(new_vae(recipe), device)

    def passed(drawn: Drawn, noise: Tensor, size_B111: Tensor) -> dict[str, Tensor]:
        mean = encode(vae, drawn.images.contiguous(memory_format=torch.channels_last))
        made = decode(vae, mean + noise * size_B111 * mean.detach().std())
        return vae_losses(drawn, mean.float(), made.float(), settings)

    forward = compiled(passed, device)

    def losses(generator: torch.Generator) -> dict[str, Tensor]:
        drawn = data.batch(settings.batch_size, generator)
        count = len(drawn.images)
        shape = (count, LATENT_CHANNELS, recipe.latent_px, recipe.latent_px)
        noise = torch.randn(shape, generator=generator, device=device)
        size_B111 = torch.rand(count, 1, 1, 1, generator=generator, device=device) * settings.latent_noise
        return forward(drawn, noise, size_B111)

    return Stage("vae", settings, nn.ModuleDict({"vae": vae}), losses)


def laplacian(images_BCHW: Tensor) -> Tensor:
    """Four neighbours less four times the pixel, [B, C, H-2, W-2]."""
    upright = images_BCHW[..., :-2, 1:-1] + images_BCHW[..., 2:, 1:-1]
    return upright + images_BCHW[..., 1:-1, :-2] + images_BCHW[..., 1:-1, 2:] - 4 * images_BCHW[..., 1:-1, 1:-1]


def vae_losses(drawn: Drawn, mean_BCHW: Tensor, made_B3HW: Tensor, settings: VaeSettings) -> dict[str, Tensor]:
    """`loss`, the absolute error on object and on background pixels, and the latents' standard deviation."""
    error = made_B3HW - drawn.images
    objects = F.max_pool2d(drawn.coverage, OUTLINE_PX, 1, OUTLINE_PX // 2)
    weight = 1 + (settings.object_weight - 1) * objects
    weight = weight / weight.mean()
    low = F.avg_pool2d(error, MEAN_PX).abs() * F.avg_pool2d(weight, MEAN_PX)
    loss = (
        (weight * error.abs()).mean()
        + settings.squared * (weight * error.square()).mean()
        + settings.edges * laplacian(error).abs().mean()
        + settings.low_frequencies * low.mean()
        + settings.latent_size * 0.5 * mean_BCHW.square().mean()
    )
    absolute = error.detach().abs().mean(1, keepdim=True)
    return {
        "loss": loss,
        "on_objects": (absolute * objects).sum() / objects.sum().clamp(min=1),
        "on_background": (absolute * (1 - objects)).sum() / (1 - objects).sum().clamp(min=1),
        "latent_std": mean_BCHW.detach().std(),
    }


@torch.no_grad()
def measure(vae: AutoencoderKL, data: TrainingData, device: torch.device) -> dict[str, float]:
    """Scaling factor, and the absolute error on pixels in [-1, 1], of averaged weights on fresh drawings."""
    generator = torch.Generator(device).manual_seed(1)
    drawn = [data.batch(min(64, MEASURED_IMAGES), generator).images for _ in range(MEASURED_IMAGES // 64)]
    means = [encode(vae, images) for images in drawn]
    errors = [(decode(vae, mean).clamp(-1, 1) - images).abs().mean() for mean, images in zip(means, drawn, strict=True)]
    return {
        "scaling_factor": 1 / float(torch.cat(means).std()),
        "absolute_error": float(torch.stack(errors).mean()),
    }


@torch.no_grad()
def vae_grid(work_dir: WorkDir, vae: AutoencoderKL, data: TrainingData, device: torch.device) -> None:
    """Drawings above what one pass makes of them."""
    images = data.batch(32, torch.Generator(device).manual_seed(2)).images
    made = decode(vae, encode(vae, images))
    pairs = row_above_row(pixels(images), pixels(made), 8)
    save_grid(work_dir.folder / "grids" / "vae.webp", pairs, columns=8)


def trained_vae(work_dir: WorkDir, device: torch.device) -> AutoencoderKL:
    """The autoencoder as the state has it, before its scaling factor is known too."""
    return frozen(new_vae(work_dir.recipe), work_dir.weights("vae", "vae."), device)


def finished_vae(work_dir: WorkDir, device: torch.device) -> FrozenVae:
    """The autoencoder that the first stage left; raises ConflictError before it has ended."""
    progress = work_dir.finished("vae")
    return FrozenVae(trained_vae(work_dir, device), progress.figures["scaling_factor"])


@torch.no_grad()
def fix_deviation(vae: AutoencoderKL, deviation: float) -> None:
    """Give the posterior one standard deviation everywhere, in units of the latents."""
    assert isinstance(vae.quant_conv, nn.Conv2d)
    weight, bias = vae.quant_conv.weight, vae.quant_conv.bias
    assert bias is not None
    weight[LATENT_CHANNELS:] = 0
    bias[LATENT_CHANNELS:] = 2 * math.log(deviation)
