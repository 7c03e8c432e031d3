"""Latent consistency models whose network is a UNet: what all such families share.

A family says which pipeline it is, what its prompts become, and what its UNet is called with (`sdxl`, `sd15`).

Shape legend: B batch, C latent channels, H, W latent height and width, h, w image height and width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import lasro.models.quiet  # noqa: F401  (before diffusers)

# isort: split

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTokenizer

from lasro.config import LoraSettings, ModelSettings
from lasro.config.model import UNET_TARGETS
from lasro.errors import ModelError, WireError
from lasro.functional.consistency import boundary_scalings, consistency, guidance_embedding
from lasro.functional.generator_loss import lcm_distillation
from lasro.functional.noise_schedule import add_noise, clean_from_output, lcm_timesteps
from lasro.models.adapter import find_adapter, put_on
from lasro.models.adapter_names import UNET, ModuleNames
from lasro.models.base import (
    LOADING_ERRORS,
    SOLVER_STEPS,
    AdapterKeys,
    Conditioning,
    DistillationLoss,
    FeatureExtractor,
    GeneratorModel,
    SamplingStep,
)
from lasro.models.device import autocast, pick_device
from lasro.models.lcm_teacher import TeacherUNet
from lasro.models.lora import add_lora, fuse_adapter, initial_values, save_adapter, without_adapters
from lasro.models.prompt_tokens import PromptTokens
from lasro.models.shared_view import shared_view
from lasro.models.unet_encoder import UNetEncoder
from lasro.validation import one_line

EMBEDDING_CACHE = 2048
DECODE_BATCH = 4  # larger ones are slower on a CPU, and at 1024 x 1024 need gigabytes each


class LatentConsistencyModel(GeneratorModel):
    """A consistency model in latent space, sampled as diffusers' LCMScheduler does.

    `unet` may carry a trained adapter; `base` is the same UNet without one, over the same memory.
    """

    pipeline_class: ClassVar[Any]
    """Of diffusers."""
    load_options: ClassVar[Mapping[str, Any]] = {}
    """For its `from_pretrained`."""
    tokenizers: ClassVar[tuple[str, ...]]
    """Parts of the pipeline: a prompt must fit each of them."""
    text_encoders: ClassVar[tuple[str, ...]]
    """One for each tokenizer, in the same order."""
    lora_targets = UNET_TARGETS

    @classmethod
    def load(cls, path: str, settings: ModelSettings) -> LatentConsistencyModel:
        cls._check_parts(path)
        dtype = getattr(torch, settings.dtype)
        options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, **cls.load_options}
        try:
            if settings.unet is not None:
                options["unet"] = UNet2DConditionModel.from_pretrained(settings.unet, dtype=dtype, use_safetensors=True)
            pipeline = cls.pipeline_class.from_pretrained(path, revision=settings.revision, **options)
        except LOADING_ERRORS as error:
            raise ModelError(f"{path}: cannot be loaded as a {cls.pipeline_class.__name__} ({error})") from error
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
        return cls(pipeline, settings)

    @classmethod
    def load_prompt_tokens(cls, path: str, settings: ModelSettings) -> PromptTokens:
        cls._check_parts(path)
        options: dict[str, Any] = {"revision": settings.revision}
        try:
            return PromptTokens(
                [
                    (
                        CLIPTokenizer.from_pretrained(path, subfolder=tokenizer, **options),
                        CLIPTextConfig.from_pretrained(path, subfolder=encoder, **options),
                    )
                    for tokenizer, encoder in zip(cls.tokenizers, cls.text_encoders, strict=True)
                ]
            )
        except LOADING_ERRORS as error:
            raise ModelError(f"{path}: its tokenizers cannot be loaded ({one_line(str(error))})") from error

    @classmethod
    def _check_parts(cls, path: str) -> None:
        """Raises ModelError naming the parts that a local folder lacks, before anything large is read."""
        if not Path(path).is_dir():
            return
        wanted = ("unet", "vae", "scheduler", *cls.tokenizers, *cls.text_encoders)
        found = sorted(folder.name for folder in Path(path).iterdir() if folder.is_dir())
        if missing := [part for part in wanted if part not in found]:
            name = cls.pipeline_class.__name__
            raise ModelError(
                f"{path}: lacks {', '.join(missing)}, which a {name} has; found {', '.join(found) or 'nothing'}"
            )

    def __init__(self, pipeline: Any, settings: ModelSettings) -> None:
        self.pipeline, self.settings = pipeline, settings
        self.device = pick_device(settings.device)
        for part in ("unet", "vae", *self.text_encoders):
            getattr(pipeline, part).requires_grad_(False).eval()
        pipeline.to(self.device)
        if self.device.type == "cpu":
            pipeline.unet.to(memory_format=torch.channels_last)
            pipeline.vae.to(memory_format=torch.channels_last)
        if pipeline.vae.config.force_upcast and settings.dtype == "float16":
            pipeline.vae.to(torch.float32)
        self.unet, self.vae = pipeline.unet, pipeline.vae
        self.check_unet(self.unet.config)
        self.base = shared_view(self.unet)
        if settings.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.alphas_cumprod_T: Tensor = pipeline.scheduler.alphas_cumprod.to(self.device)
        self.guidance_dim: int | None = self.unet.config.time_cond_proj_dim
        if self.guidance_dim is None and settings.guidance > 1:
            raise ModelError(f"guidance: got {settings.guidance}, but this UNet has no guidance embedding; set it to 1")
        size, scale = self.unet.config.sample_size, pipeline.vae_scale_factor
        self.latent_shape = (self.unet.config.in_channels, size, size)
        self.image_size = (size * scale, size * scale)
        parts = zip(self.tokenizers, self.text_encoders, strict=True)
        self._prompt_tokens = PromptTokens(
            [(getattr(pipeline, tokenizer), getattr(pipeline, encoder).config) for tokenizer, encoder in parts]
        )
        self._embeddings: OrderedDict[tuple[str, bool], dict[str, Tensor]] = OrderedDict()
        self._encoders_adapted = False

    # --- what a family says ----------------------------------------------------------------------------------

    @abstractmethod
    def check_unet(self, config: Any) -> None:
        """Raise ModelError for a UNet that is not of this family."""

    @abstractmethod
    def embed_prompt(self, prompt: str) -> dict[str, Tensor]:
        """One prompt's tensors, without a batch axis."""

    @abstractmethod
    def prompt_arguments(self, conditioning: Conditioning) -> dict[str, Any]:
        """Keyword arguments by which the UNet takes a prompt."""

    # --- sampling --------------------------------------------------------------------------------------------

    def embed(self, prompts: Sequence[str], base: bool = False) -> Conditioning:
        """As `GeneratorModel.embed`; cached."""
        of_base = base and self._encoders_adapted
        with torch.no_grad(), without_adapters(self.pipeline) if of_base else nullcontext():
            for prompt in dict.fromkeys(prompts):
                if (prompt, of_base) not in self._embeddings:
                    self.check_prompts([prompt])
                    self._embeddings[prompt, of_base] = self.embed_prompt(prompt)
        rows = [self._embeddings[prompt, of_base] for prompt in prompts]
        for prompt in prompts:
            self._embeddings.move_to_end((prompt, of_base))
        while len(self._embeddings) > EMBEDDING_CACHE:
            self._embeddings.popitem(last=False)
        return Conditioning({name: torch.stack([row[name] for row in rows]) for name in rows[0]})

    def check_prompts(self, prompts: Sequence[str]) -> None:
        self._prompt_tokens.check(prompts)

    def unet_arguments(self, conditioning: Conditioning, guidance: float | None = None) -> dict[str, Any]:
        """Keyword arguments by which the UNet takes prompt and guidance; absent, the settings' guidance."""
        arguments = self.prompt_arguments(conditioning)
        if self.guidance_dim is not None:
            w = self.settings.guidance if guidance is None else guidance
            w_B = torch.full((len(conditioning),), w, device=self.device, dtype=torch.float32)
            dtype = arguments["encoder_hidden_states"].dtype
            arguments["timestep_cond"] = guidance_embedding(w_B, self.guidance_dim).to(dtype)
        return arguments

    def steps(self, num_steps: int) -> tuple[SamplingStep, ...]:
        return tuple(SamplingStep(index, time) for index, time in enumerate(lcm_timesteps(num_steps)))

    def predict_clean(
        self, x_t_BCHW: Tensor, step: SamplingStep, conditioning: Conditioning, base: bool = False
    ) -> Tensor:
        return self.predict_at(x_t_BCHW, int(step.time), conditioning, base)

    def predict_at(
        self, x_t_BCHW: Tensor, timestep: int | Tensor, conditioning: Conditioning, base: bool = False
    ) -> Tensor:
        """f_theta at any timestep: one for all, or int64 [B]."""
        t, arguments = torch.as_tensor(timestep, device=self.device), self.unet_arguments(conditioning)
        config = self.pipeline.scheduler.config
        with autocast(self.device, self.settings.autocast):
            x_t = x_t_BCHW.to(arguments["encoder_hidden_states"].dtype)
            output = (self.base if base else self.unet)(x_t, t, **arguments).sample
        column = t.reshape(-1, 1, 1, 1)
        z = clean_from_output(output.float(), x_t_BCHW, self.alphas_cumprod_T[column], config.prediction_type)
        return consistency(z, x_t_BCHW, *boundary_scalings(column.float(), config.timestep_scaling))

    def renoise(self, z_BCHW: Tensor, noise_BCHW: Tensor, step: SamplingStep) -> Tensor:
        return add_noise(z_BCHW, noise_BCHW, self.alphas_cumprod_T[int(step.time)])

    def diffuse(self, z_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        return add_noise(z_BCHW, noise_BCHW, self.alphas_cumprod_T[timesteps_B].reshape(-1, 1, 1, 1))

    # --- images ----------------------------------------------------------------------------------------------

    def decode_pixels(self, latents_BCHW: Tensor) -> Tensor:
        return torch.cat([self._decode(part, "none") for part in latents_BCHW.split(DECODE_BATCH)]) / 2 + 0.5

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor, mixed: bool = False) -> np.ndarray:
        dtype = self.settings.autocast if mixed else "none"
        images = torch.cat([self._decode(part, dtype) for part in latents_BCHW.split(DECODE_BATCH)])
        unit = (images / 2 + 0.5).clamp(0, 1)
        return (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def _decode(self, latents_BCHW: Tensor, dtype: str) -> Tensor:
        """Images float32 [B, 3, h, w], -1 to 1."""
        part = latents_BCHW.to(self.vae.dtype).contiguous(memory_format=torch.channels_last)
        with autocast(self.device, dtype):
            return self.vae.decode(part / self.vae.config.scaling_factor).sample.float()

    @torch.no_grad()
    def encode(self, images_BhwC: np.ndarray) -> Tensor:
        expected = (*self.image_size, 3)
        if images_BhwC.shape[1:] != expected:
            raise WireError(f"images: got {images_BhwC.shape[1:]}, expected {expected}")
        pixels = torch.from_numpy(images_BhwC).to(self.device, self.vae.dtype).permute(0, 3, 1, 2) / 127.5 - 1
        means = [self.vae.encode(part).latent_dist.mode() for part in pixels.split(DECODE_BATCH)]
        return torch.cat(means).float() * self.vae.config.scaling_factor

    # --- what is trained -------------------------------------------------------------------------------------

    def feature_extractor(self) -> FeatureExtractor:
        return UNetEncoder(self.base, self.unet_arguments)

    def add_lora(self, settings: LoraSettings, seed: int) -> list[nn.Parameter]:
        return add_lora(self.unet, settings, self.lora_targets, seed)

    def save_lora(self, folder: Path, settings: LoraSettings) -> Path:
        return save_adapter(self.pipeline_class, self.unet, folder, settings)

    def initial_lora(self, path: Path, settings: LoraSettings) -> list[Tensor]:
        return initial_values(self.unet, find_adapter(path, self._module_names()), settings)

    def load_lora(self, path: Path, partial: bool = False) -> AdapterKeys:
        adapter = find_adapter(path, self._module_names(), partial)
        put_on(self.pipeline.components, adapter)
        self._encoders_adapted = not adapter.parts.keys().isdisjoint(self.text_encoders)
        self._embeddings.clear()
        return adapter.keys

    def _module_names(self) -> ModuleNames:
        encoders = {name: getattr(self.pipeline, name) for name in self.text_encoders}
        return ModuleNames({UNET: self.base, **encoders})

    def save_fused(self, folder: Path) -> None:
        fuse_adapter(self.pipeline)
        self.pipeline.save_pretrained(folder, safe_serialization=True)

    def distillation_loss(self, teacher: str) -> DistillationLoss:
        unet = TeacherUNet(teacher, self.unet.dtype, self.device)
        timesteps = lcm_timesteps(SOLVER_STEPS)[::-1]

        def loss(z_BCHW: Tensor, noise_BCHW: Tensor, index: int, prompts: Sequence[str]) -> Tensor:
            """L_lcm from solver step `index` to the one before."""
            conditioning = self.embed(prompts)
            of_teacher = self.unet_arguments(self.embed([*prompts, *([""] * len(prompts))]))
            return lcm_distillation(
                z_BCHW,
                noise_BCHW,
                timesteps[index],
                timesteps[index - 1],
                torch.tensor(self.settings.guidance, device=self.device),
                lambda x_t, t: self.predict_at(x_t, t, conditioning),
                lambda x_t, t: unet.outputs(x_t, t, of_teacher),
                self.alphas_cumprod_T,
                self.pipeline.scheduler.config.prediction_type,
            )

        return loss
