"""Stage 3: latent consistency distillation of the teacher into a student of one, two and four steps.

Luo et al., arXiv 2310.04378: the student's clean prediction at t shall be the target network's one DDIM step earlier,
the step taken by the teacher with a random guidance scale, which the student is told through its time embedding.

Shape legend: B batch, C channels, H, W latent cells; B111 one number per sample, broadcast.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTokenizer

from lasro.functional.consistency import boundary_scalings, consistency, guidance_embedding, sample
from lasro.functional.noise_schedule import add_noise, clean_from_output, ddim_step, lcm_timesteps
from lasro.models.device import autocast
from tiny_recipe.config import Recipe
from tiny_recipe.latents import SEEDS_PER_PROMPT, Pool, decoded, evaluation_tokens
from tiny_recipe.networks import added_conditions, alphas_cumprod, embed, frozen, new_unet, on, tokenize
from tiny_recipe.reporting import pixels, save_grid
from tiny_recipe.speed import compiled
from tiny_recipe.stage import Stage
from tiny_recipe.teacher import finished_encoders, finished_teacher, noise_predictor
from tiny_recipe.vae import FrozenVae
from tiny_recipe.work_dir import WorkDir

GRID_GUIDANCE = 4.0
Predictor = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def new_student(recipe: Recipe) -> UNet2DConditionModel:
    return new_unet(recipe, recipe.unet.guidance_width)


def student_of(teacher: UNet2DConditionModel, recipe: Recipe, device: torch.device) -> UNet2DConditionModel:
    """A student that begins as its teacher: its guidance embedding begins at zero."""
    student = new_student(recipe)
    unfilled, unknown = student.load_state_dict(teacher.state_dict(), strict=False)
    assert unfilled == ["time_embedding.cond_proj.weight"], unfilled
    assert not unknown, unknown
    nn.init.zeros_(student.get_parameter(unfilled[0]))
    return on(student, device)


def clean_predictor(
    unet: UNet2DConditionModel, recipe: Recipe, abar_T: Tensor, compile_on: torch.device | None = None
) -> Predictor:
    """f_theta(x_t, t, states, pooled, w), float32 [B, C, H, W]; compiled where it is called often enough."""

    def outputs(x_t: Tensor, t_B: Tensor, states: Tensor, pooled: Tensor, guided: Tensor) -> Tensor:
        conditions = added_conditions(pooled, recipe.data.image_px)
        return unet(x_t, t_B, states, timestep_cond=guided, added_cond_kwargs=conditions).sample

    forward = outputs if compile_on is None else compiled(outputs, compile_on)

    def predict(x_t: Tensor, t_B: Tensor, states: Tensor, pooled: Tensor, w_B: Tensor) -> Tensor:
        output = forward(x_t, t_B, states, pooled, guidance_embedding(w_B, recipe.unet.guidance_width)).float()
        t_B111 = t_B[:, None, None, None]
        return consistency(clean_from_output(output, x_t, abar_T[t_B111]), x_t, *boundary_scalings(t_B111.float()))

    return predict


def lcm_stage(work_dir: WorkDir, pool: Pool, tokenizer: CLIPTokenizer, device: torch.device) -> Stage:
    recipe, settings = work_dir.recipe, work_dir.recipe.lcm
    encoders, teacher = finished_encoders(work_dir, tokenizer, device), finished_teacher(work_dir, device)
    student = student_of(teacher, recipe, device)
    target = copy.deepcopy(student).requires_grad_(False)
    abar_T = alphas_cumprod(recipe, device)
    stride = len(abar_T) // settings.solver_steps
    taught = clean_predictor(student, recipe, abar_T, device)
    aimed = clean_predictor(target, recipe, abar_T, device)
    guided_step = teacher_step(teacher, recipe, abar_T, embed(encoders, tokenize(tokenizer, [""]).to(device)), device)
    least, most = settings.guidance

    def losses(generator: torch.Generator) -> dict[str, Tensor]:
        z, tokens_BL = pool.draw(settings.batch_size, generator)
        count = len(z)
        place_B = torch.randint(settings.solver_steps, (count,), generator=generator, device=device)
        w_B = torch.rand(count, generator=generator, device=device) * (most - least) + least
        noise = torch.randn(z.shape, generator=generator, device=device)
        t_B = (place_B + 1) * stride - 1
        earlier_B = (t_B - stride).clamp(min=0)
        x_t = add_noise(z, noise, abar_T[t_B][:, None, None, None])
        with torch.no_grad():
            states, pooled = embed(encoders, tokens_BL)
            x_earlier = guided_step(x_t, t_B, earlier_B, states, pooled, w_B)
            wanted = aimed(x_earlier, earlier_B, states, pooled, w_B)
        error = taught(x_t, t_B, states, pooled, w_B) - wanted
        return {"loss": ((error.square() + settings.huber**2).sqrt() - settings.huber).mean()}

    trained, followed = nn.ModuleDict({"unet": student}), nn.ModuleDict({"unet": target})
    return Stage("lcm", settings, trained, losses, followed, settings.target)


def teacher_step(
    teacher: UNet2DConditionModel,
    recipe: Recipe,
    abar_T: Tensor,
    empty: tuple[Tensor, Tensor],
    device: torch.device,
) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    """One DDIM step of the teacher from t to an earlier timestep, guided by w: what is said against what is not."""
    empty_states, empty_pooled = empty

    forward = compiled(noise_predictor(teacher, recipe), device)

    def step(x_t: Tensor, t_B: Tensor, earlier_B: Tensor, states: Tensor, pooled: Tensor, w_B: Tensor) -> Tensor:
        all_states = torch.cat([states, empty_states.to(states.dtype).expand_as(states)])
        all_pooled = torch.cat([pooled, empty_pooled.to(pooled.dtype).expand_as(pooled)])
        output = forward(torch.cat([x_t, x_t]), torch.cat([t_B, t_B]), all_states, all_pooled).float()
        within, without = output.chunk(2)
        noise = without + w_B[:, None, None, None] * (within - without)
        z = clean_from_output(noise, x_t, abar_T[t_B][:, None, None, None])
        return ddim_step(z, noise, abar_T[earlier_B][:, None, None, None])

    return step


def finished_student(work_dir: WorkDir, device: torch.device) -> UNet2DConditionModel:
    work_dir.finished("lcm")
    return frozen(new_student(work_dir.recipe), work_dir.weights("lcm", "unet."), device)


@torch.no_grad()
def lcm_grids(work_dir: WorkDir, vae: FrozenVae, tokenizer: CLIPTokenizer, device: torch.device) -> None:
    """The evaluation prompts by one, two and four steps."""
    recipe = work_dir.recipe
    encoders, student = finished_encoders(work_dir, tokenizer, device), finished_student(work_dir, device)
    abar_T, tokens_BL = alphas_cumprod(recipe, device), evaluation_tokens(tokenizer, device)
    count = len(tokens_BL)
    predict = clean_predictor(student, recipe, abar_T)
    w_B = torch.full((count,), GRID_GUIDANCE, device=device)
    shape = (count, 4, recipe.latent_px, recipe.latent_px)
    with autocast(device, "auto"):
        states, pooled = embed(encoders, tokens_BL)
        for steps in (1, 2, 4):
            generator = torch.Generator(device).manual_seed(1)
            noises = [torch.randn(shape, generator=generator, device=device) for _ in range(steps)]
            timesteps = lcm_timesteps(steps, original_steps=recipe.lcm.solver_steps)
            latents = grid_latents(
                lambda x_t, t: predict(x_t, torch.full((count,), t, device=device), states, pooled, w_B),
                noises,
                timesteps,
                abar_T,
            )
            path = work_dir.folder / "grids" / f"lcm-{steps}.webp"
            save_grid(path, pixels(decoded(vae, latents)), 2 * SEEDS_PER_PROMPT)


def grid_latents(
    predict: Callable[[Tensor, int], Tensor], noises: Sequence[Tensor], timesteps: Sequence[int], abar_T: Tensor
) -> Tensor:
    """Clean latents after the last of these timesteps."""
    (taken,) = sample(
        predict,
        lambda eps, t: eps,
        lambda x_t, z, eps, t, next_t: add_noise(z, eps, abar_T[next_t]),
        noises,
        [timesteps],
    )
    return taken[-1].z_BCHW
