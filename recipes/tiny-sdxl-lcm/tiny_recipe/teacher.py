"""Stage 2: the diffusion model and its text encoders, trained together to predict the noise.

Min-SNR weights: Hang et al., arXiv 2303.09556. Shape legend: B batch, C channels, H, W latent cells, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPTokenizer

from lasro.functional.noise_schedule import add_noise
from lasro.models.device import autocast
from tiny_recipe.config import Recipe
from tiny_recipe.latents import SEEDS_PER_PROMPT, Pool, decoded, evaluation_tokens
from tiny_recipe.networks import (
    added_conditions,
    alphas_cumprod,
    embed,
    frozen,
    load_plain,
    new_text_encoders,
    new_unet,
    on,
    scheduler,
    tokenize,
)
from tiny_recipe.reporting import pixels, save_grid
from tiny_recipe.speed import compiled
from tiny_recipe.stage import Stage
from tiny_recipe.vae import FrozenVae
from tiny_recipe.work_dir import WorkDir

LEAST_WEIGHT = 0.2  # of a nearly clean timestep: fine detail is learned there
GRID_STEPS, GRID_GUIDANCE = 30, 4.0


def noise_predictor(unet: UNet2DConditionModel, recipe: Recipe) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The UNet as a function of x_t, t, states and pooled embedding."""

    def predict(x_t: Tensor, t_B: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
        conditions = added_conditions(pooled, recipe.data.image_px)
        return unet(x_t, t_B, states, added_cond_kwargs=conditions).sample

    return predict


def teacher_stage(recipe: Recipe, pool: Pool, tokenizer: CLIPTokenizer, device: torch.device) -> Stage:
    settings, unet, encoders = recipe.teacher, on(new_unet(recipe), device), new_text_encoders(recipe, tokenizer)
    encoders.to(device)
    abar_T = alphas_cumprod(recipe, device)
    empty_1L = tokenize(tokenizer, [""]).to(device)

    forward = compiled(noise_predictor(unet, recipe), device)

    def losses(generator: torch.Generator) -> dict[str, Tensor]:
        z, tokens_BL = pool.draw(settings.batch_size, generator)
        count = len(z)
        dropped_B1 = torch.rand(count, 1, generator=generator, device=device) < settings.empty_prompts
        t_B = torch.randint(len(abar_T), (count,), generator=generator, device=device)
        noise = torch.randn(z.shape, generator=generator, device=device)
        states, pooled = embed(encoders, torch.where(dropped_B1, empty_1L, tokens_BL))
        x_t = add_noise(z, noise, abar_T[t_B][:, None, None, None])
        output = forward(x_t, t_B, states, pooled).float()
        snr_B = abar_T[t_B] / (1 - abar_T[t_B])
        weight_B = (snr_B.clamp(max=settings.min_snr) / snr_B).clamp(min=LEAST_WEIGHT)
        return {"loss": ((output - noise).square().mean((1, 2, 3)) * weight_B).mean()}

    return Stage("teacher", settings, nn.ModuleDict({"unet": unet, **encoders}), losses)


def finished_encoders(work_dir: WorkDir, tokenizer: CLIPTokenizer, device: torch.device) -> nn.ModuleDict:
    """The text encoders that the teacher's stage left."""
    work_dir.finished("teacher")
    encoders, weights = new_text_encoders(work_dir.recipe, tokenizer), work_dir.weights("teacher")
    load_plain(encoders, weights)
    return encoders.to(device).requires_grad_(False).eval()


def finished_teacher(work_dir: WorkDir, device: torch.device) -> UNet2DConditionModel:
    """The UNet that the teacher's stage left."""
    work_dir.finished("teacher")
    return frozen(new_unet(work_dir.recipe), work_dir.weights("teacher", "unet."), device)


@torch.no_grad()
def teacher_grid(work_dir: WorkDir, vae: FrozenVae, tokenizer: CLIPTokenizer, device: torch.device) -> None:
    """The evaluation prompts by thirty DDIM steps with classifier-free guidance."""
    recipe = work_dir.recipe
    unet, encoders = finished_teacher(work_dir, device), finished_encoders(work_dir, tokenizer, device)
    tokens_BL = evaluation_tokens(tokenizer, device)
    empty_BL = tokenize(tokenizer, [""]).to(device).expand_as(tokens_BL)
    config = dict(scheduler(recipe).config)
    solver: Any = DDIMScheduler.from_config(config, steps_offset=1, clip_sample=False, timestep_spacing="leading")
    solver.set_timesteps(GRID_STEPS)
    generator = torch.Generator(device).manual_seed(1)
    shape = (len(tokens_BL), 4, recipe.latent_px, recipe.latent_px)
    x_t = torch.randn(shape, generator=generator, device=device)
    predict = noise_predictor(unet, recipe)
    with autocast(device, "auto"):
        states, pooled = embed(encoders, torch.cat([empty_BL, tokens_BL]))
        for t in solver.timesteps:
            output = predict(torch.cat([x_t, x_t]), t, states, pooled).float()
            without, within = output.chunk(2)
            x_t = solver.step(without + GRID_GUIDANCE * (within - without), int(t), x_t).prev_sample
    save_grid(work_dir.folder / "grids" / "teacher.webp", pixels(decoded(vae, x_t)), 2 * SEEDS_PER_PROMPT)
