"""The two-step generator: with `trunk` and `adapters` the only module that knows diffusers and peft inside.

Modules that share the frozen weights of one UNet (`shared_view`) carry their own adapters, so nothing ever has to
switch the active adapter: a recomputed checkpoint block cannot run with the wrong one.

Shape legend: B batch, C latent channels, H, W latent height and width, T tokens, D embedding, P pooled.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import lasro.models.quiet  # noqa: F401  (before diffusers)

# isort: split

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from torch import Tensor, nn

from lasro.config import ModelSettings
from lasro.errors import ModelError, PromptTooLongError, WireError
from lasro.functional.consistency import boundary_scalings, clean_from_output, consistency, guidance_embedding
from lasro.models.device import autocast, pick_device

BUNDLED = "assets/tiny-sdxl-lcm"
EMBEDDING_CACHE = 2048
DECODE_BATCH = 4  # larger ones are slower on a CPU, and at 1024 x 1024 need gigabytes each
M = TypeVar("M", bound=nn.Module)


class Conditioning(NamedTuple):
    """A prompt's embeddings for B samples; no gradient."""

    embeds_BTD: Tensor
    pooled_BP: Tensor

    def repeat_each(self, count: int) -> Conditioning:
        """Each row `count` times in a row."""
        return Conditioning(*(rows.repeat_interleave(count, 0) for rows in self))

    def rows(self, chosen_B: Tensor | slice) -> Conditioning:
        """Those that a mask, indices or a slice name."""
        return Conditioning(*(rows[chosen_B] for rows in self))


def shared_view(module: M) -> M:
    """A copy of the module tree over the very same parameters and buffers: no memory, and adapters of its own."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, memo={id(tensor): tensor for tensor in tensors})


def load_model(settings: ModelSettings) -> TwoStepModel:
    """Load an SDXL-class consistency model; raises ModelError saying what is missing or unsupported."""
    path = str(files("lasro").joinpath(BUNDLED)) if settings.path == "bundled" else settings.path
    if path.startswith(("/", ".", "~")) and not Path(path, "model_index.json").is_file():
        raise ModelError(f"{path}: no model_index.json there; expected the folder of a StableDiffusionXLPipeline")
    dtype = getattr(torch, settings.dtype)
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    try:
        if settings.unet is not None:
            options["unet"] = UNet2DConditionModel.from_pretrained(settings.unet, dtype=dtype, use_safetensors=True)
        pipeline = StableDiffusionXLPipeline.from_pretrained(
            path, revision=settings.revision, add_watermarker=False, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{path}: cannot be loaded as a StableDiffusionXLPipeline ({error})") from error
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    return TwoStepModel(pipeline, settings)


class TwoStepModel:
    """An SDXL-class consistency model: prompts to embeddings, noise to clean latents, latents to images.

    `unet` may carry a trained adapter; `base` is the same UNet without one, over the same memory.
    """

    def __init__(self, pipeline: Any, settings: ModelSettings) -> None:
        self.pipeline, self.settings = pipeline, settings
        self.device = pick_device(settings.device)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            part.requires_grad_(False).eval()
        pipeline.to(self.device)
        if self.device.type == "cpu":
            pipeline.unet.to(memory_format=torch.channels_last)
            pipeline.vae.to(memory_format=torch.channels_last)
        if pipeline.vae.config.force_upcast and settings.dtype == "float16":
            pipeline.vae.to(torch.float32)
        self.unet, self.vae = pipeline.unet, pipeline.vae
        self.base = shared_view(self.unet)
        if settings.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.alphas_cumprod_T: Tensor = pipeline.scheduler.alphas_cumprod.to(self.device)
        self.guidance_dim: int | None = self.unet.config.time_cond_proj_dim
        if self.guidance_dim is None and settings.guidance > 1:
            raise ModelError(f"guidance: got {settings.guidance}, but this UNet has no guidance embedding; set it to 1")
        size = self.unet.config.sample_size
        self.latent_shape: tuple[int, int, int] = (self.unet.config.in_channels, size, size)
        self._embeddings: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()

    def embed(self, prompts: list[str]) -> Conditioning:
        """Embeddings of the prompts, cached; raises PromptTooLongError rather than cutting a prompt short.

        Each is computed alone: in a batch its last bits depend on its neighbours, and so, by the cache, on all that was
        embedded before. A run that is resumed would come out differently.
        """
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embeddings]
        for prompt in missing:
            self._check_length(prompt)
            with torch.no_grad():
                embeds_1TD, _, pooled_1P, _ = self.pipeline.encode_prompt(
                    prompt, device=self.device, do_classifier_free_guidance=False
                )
            self._embeddings[prompt] = embeds_1TD[0], pooled_1P[0]
        rows = [self._embeddings[prompt] for prompt in prompts]
        for prompt in prompts:
            self._embeddings.move_to_end(prompt)
        while len(self._embeddings) > EMBEDDING_CACHE:
            self._embeddings.popitem(last=False)
        return Conditioning(torch.stack([embeds for embeds, _ in rows]), torch.stack([pooled for _, pooled in rows]))

    def _check_length(self, prompt: str) -> None:
        for tokenizer in (self.pipeline.tokenizer, self.pipeline.tokenizer_2):
            count, limit = len(tokenizer(prompt, verbose=False).input_ids), tokenizer.model_max_length
            if count > limit:
                raise PromptTooLongError(
                    f"prompt {prompt[:60]!r}: got {count} tokens, expected at most {limit}; shorten it"
                )

    def unet_arguments(self, conditioning: Conditioning, guidance: float | None = None) -> dict[str, Any]:
        """Keyword arguments by which an SDXL UNet takes prompt, size and guidance."""
        embeds_BTD, pooled_BP = conditioning
        scale = self.pipeline.vae_scale_factor
        height, width = self.latent_shape[1] * scale, self.latent_shape[2] * scale
        time_ids = torch.tensor([height, width, 0, 0, height, width], device=self.device, dtype=embeds_BTD.dtype)
        arguments: dict[str, Any] = {
            "encoder_hidden_states": embeds_BTD,
            "added_cond_kwargs": {"text_embeds": pooled_BP, "time_ids": time_ids.expand(len(pooled_BP), 6)},
        }
        if self.guidance_dim is not None:
            w = self.settings.guidance if guidance is None else guidance
            w_B = torch.full((len(pooled_BP),), w, device=self.device, dtype=torch.float32)
            arguments["timestep_cond"] = guidance_embedding(w_B, self.guidance_dim).to(embeds_BTD.dtype)
        return arguments

    def predict_clean(
        self,
        x_t_BCHW: Tensor,
        timestep: int | Tensor,
        conditioning: Conditioning,
        guidance: float | None = None,
        base: bool = False,
    ) -> Tensor:
        """f_theta(x_t, t, c), float32: the clean latents; of the frozen base where `base` is set.

        `timestep` is one for all, or int64 [B].
        """
        t = torch.as_tensor(timestep, device=self.device)
        config = self.pipeline.scheduler.config
        with autocast(self.device, self.settings.autocast):
            output = (self.base if base else self.unet)(
                x_t_BCHW.to(conditioning.embeds_BTD.dtype), t, **self.unet_arguments(conditioning, guidance)
            ).sample
        column = t.reshape(-1, 1, 1, 1)
        z = clean_from_output(output.float(), x_t_BCHW, self.alphas_cumprod_T[column], config.prediction_type)
        return consistency(z, x_t_BCHW, *boundary_scalings(column.float(), config.timestep_scaling))

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor, mixed: bool = False) -> np.ndarray:
        """Images uint8 [B, H, W, 3]; with `mixed` in the settings' autocast dtype, else as the weights are."""
        images = []
        for part in latents_BCHW.split(DECODE_BATCH):
            part = (
                part.to(self.vae.dtype).contiguous(memory_format=torch.channels_last) / self.vae.config.scaling_factor
            )
            with autocast(self.device, self.settings.autocast if mixed else "none"):
                images.append(self.vae.decode(part).sample.float())
        unit = (torch.cat(images) / 2 + 0.5).clamp(0, 1)
        return (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()

    @torch.no_grad()
    def encode(self, images_BHWC: np.ndarray) -> Tensor:
        """Latents float32 [B, C, H, W] of uint8 images of the model's own size: the posterior's mean."""
        side = self.latent_shape[1] * self.pipeline.vae_scale_factor
        if images_BHWC.shape[1:] != (side, side, 3):
            raise WireError(f"images: got {images_BHWC.shape[1:]}, expected ({side}, {side}, 3)")
        pixels = torch.from_numpy(images_BHWC).to(self.device, self.vae.dtype).permute(0, 3, 1, 2) / 127.5 - 1
        means = [self.vae.encode(part).latent_dist.mode() for part in pixels.split(DECODE_BATCH)]
        return torch.cat(means).float() * self.vae.config.scaling_factor


def load_teacher(model: TwoStepModel, path: str) -> Callable[[Tensor, int, list[str]], tuple[Tensor, Tensor]]:
    """The frozen diffusion UNet that `model` was distilled from, from a UNet folder or hub id, or a pipeline's.

    Called with x_t [B, C, H, W], a timestep and prompts, it gives the conditional and unconditional outputs, float32.
    """
    subfolder = "unet" if Path(path, "unet").is_dir() else None
    try:
        unet = UNet2DConditionModel.from_pretrained(path, subfolder=subfolder, dtype=model.unet.dtype)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{path}: cannot be loaded as the teacher's UNet ({error})") from error
    teacher = unet.requires_grad_(False).eval()
    nn.Module.to(teacher, model.device)

    @torch.no_grad()
    def outputs(x_t_BCHW: Tensor, timestep: int, prompts: list[str]) -> tuple[Tensor, Tensor]:
        arguments = model.unet_arguments(model.embed([*prompts, *([""] * len(prompts))]))
        arguments.pop("timestep_cond", None)
        both = torch.cat([x_t_BCHW, x_t_BCHW]).to(unet.dtype)
        conditional, unconditional = teacher(both, timestep, **arguments).sample.float().chunk(2)
        return conditional, unconditional

    return outputs
