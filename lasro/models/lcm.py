"""Latent consistency models whose network is a UNet: what all such families share.

A family says which pipeline it is, what its prompts become, and what its UNet is called with (`sdxl`, `sd15`).

Shape legend: B batch, C latent channels, H, W latent height and width, h, w image height and width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import lasro.models.quiet  # noqa: F401  (before diffusers)

# isort: split

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lasro.config import LoraSettings, ModelSettings
from lasro.config.model import UNET_TARGETS
from lasro.errors import ModelError, WireError
from lasro.functional.consistency import guidance_embedding
from lasro.functional.generator_loss import lcm_distillation
from lasro.functional.noise_schedule import solver_pairs
from lasro.models.adapter import find_adapter, put_on
from lasro.models.adapter_names import UNET, ModuleNames
from lasro.models.base import (
    SOLVER_STEPS,
    AdapterKeys,
    Conditioning,
    DistillationLoss,
    FeatureExtractor,
    GeneratorModel,
    SamplingStep,
)
from lasro.models.device import autocast, device_memory, pick_device
from lasro.models.float32_convolutions import compute_ends_in_float32
from lasro.models.latent_codec import LatentCodec
from lasro.models.lcm_schedule import LcmSchedule
from lasro.models.lcm_teacher import TeacherUNet
from lasro.models.load_pipeline import load_pipeline, load_prompt_tokens
from lasro.models.loading import loading
from lasro.models.lora import add_lora, fuse_adapter, initial_values, save_adapter, without_adapters
from lasro.models.prompt_tokens import PromptTokens, check_tokenizer, token_limit
from lasro.models.shared_view import shared_view
from lasro.models.unet_checks import check_pipeline, latent_size
from lasro.models.unet_encoder import UNetEncoder

EMBEDDING_CACHE = 2048
EMBEDDING_ADVICE = 'set model.dtype = "bfloat16", or free memory on the device'
CODEC_BATCH = 4  # larger ones are slower on a CPU, and at 1024 x 1024 need gigabytes each


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
    normalises: ClassVar[bool] = False
    """Whether the stock pipeline applies a VAE's `latents_mean` and `latents_std`."""
    lora_targets = UNET_TARGETS
    takes_timesteps = True

    @classmethod
    def load(cls, path: str, settings: ModelSettings) -> LatentConsistencyModel:
        parts = ("unet", "vae", "scheduler", *cls.tokenizers, *cls.text_encoders)
        return cls(load_pipeline(cls.pipeline_class, parts, cls.load_options, path, settings), settings)

    @classmethod
    def load_prompt_tokens(cls, path: str, settings: ModelSettings) -> PromptTokens:
        return load_prompt_tokens(cls.tokenizers, cls.text_encoders, path, settings)

    def __init__(self, pipeline: Any, settings: ModelSettings) -> None:
        """Of a stock pipeline, whose parts are frozen and moved to the settings' device; raises ModelError."""
        self.pipeline, self.settings = pipeline, settings
        self.device = pick_device(settings.device)
        where = f"model.path {settings.path}"
        convert = settings.scheduler == "lcm" or settings.unet is not None
        schedule = LcmSchedule(pipeline.scheduler, f"{where}: scheduler", convert)
        check_pipeline(pipeline, self.text_encoders, settings, self.check_unet)
        self._prompt_tokens = self._limit_tokens(where)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = schedule.scheduler
        for part in ("unet", "vae", *self.text_encoders):
            getattr(pipeline, part).requires_grad_(False).eval()
        with loading(where):
            pipeline.to(self.device)
        if self.device.type == "cpu":
            pipeline.unet.to(memory_format=torch.channels_last)
            pipeline.vae.to(memory_format=torch.channels_last)
        batch = min(CODEC_BATCH, settings.max_batch or CODEC_BATCH)
        self.codec = LatentCodec(pipeline.vae, f"{where}: vae", batch, self.normalises)
        self.unet, self.schedule = pipeline.unet, schedule.to(self.device)
        compute_ends_in_float32(self.unet)
        self.base = shared_view(self.unet)
        if settings.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.guidance_dim: int | None = self.unet.config.time_cond_proj_dim
        if self.guidance_dim is None and settings.guidance > 1:
            raise ModelError(f"guidance: got {settings.guidance}, but this UNet has no guidance embedding; set it to 1")
        height, width = latent_size(self.unet.config)
        scale = pipeline.vae_scale_factor
        self.latent_shape = (self.unet.config.in_channels, height, width)
        self.image_size = (height * scale, width * scale)
        self._embeddings: OrderedDict[tuple[str, bool], dict[str, Tensor]] = OrderedDict()
        self._encoders_adapted = False

    def _limit_tokens(self, where: str) -> PromptTokens:
        """Gives the tokenizers their true limits: stock pads each prompt to them."""
        pairs = []
        for name, encoder in zip(self.tokenizers, self.text_encoders, strict=True):
            tokenizer, text_config = getattr(self.pipeline, name), getattr(self.pipeline, encoder).config
            check_tokenizer(tokenizer, text_config, f"{where}: {name}")
            tokenizer.model_max_length = token_limit(tokenizer, text_config)
            pairs.append((tokenizer, text_config))
        return PromptTokens(pairs)

    # --- what a family says ----------------------------------------------------------------------------------

    @abstractmethod
    def check_unet(self, config: Any) -> None:
        """Raise ModelError for a UNet that is not of this family; what goes before the message names model and part."""

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
                    with device_memory("embedding a prompt", EMBEDDING_ADVICE):
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
        times = self.schedule.timesteps(num_steps, self.settings.timesteps)
        return tuple(SamplingStep(index, time) for index, time in enumerate(times))

    def predict_clean(
        self, x_t_BCHW: Tensor, step: SamplingStep, conditioning: Conditioning, base: bool = False
    ) -> Tensor:
        return self.predict_at(x_t_BCHW, int(step.time), conditioning, base)

    def predict_at(
        self, x_t_BCHW: Tensor, timestep: int | Tensor, conditioning: Conditioning, base: bool = False
    ) -> Tensor:
        """f_theta at any timestep: one for all, or int64 [B]."""
        t, arguments = torch.as_tensor(timestep, device=self.device), self.unet_arguments(conditioning)
        with autocast(self.device, self.settings.autocast):
            mixed = torch.is_autocast_enabled(self.device.type)
            x_t = x_t_BCHW.float() if mixed else x_t_BCHW.to(arguments["encoder_hidden_states"].dtype)
            output = (self.base if base else self.unet)(x_t, t, **arguments).sample
        return self.schedule.predict(output.float(), x_t_BCHW, t)

    def next_input(
        self, x_t_BCHW: Tensor, z_BCHW: Tensor, noise_BCHW: Tensor, step: SamplingStep, next_step: SamplingStep
    ) -> Tensor:
        return self.schedule.add_noise(z_BCHW, noise_BCHW, int(next_step.time))

    def diffuse(self, z_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        return self.schedule.add_noise(z_BCHW, noise_BCHW, timesteps_B)

    # --- images ----------------------------------------------------------------------------------------------

    def decode_pixels(self, latents_BCHW: Tensor) -> Tensor:
        return self.codec.decode(latents_BCHW) / 2 + 0.5

    @torch.no_grad()
    def decode(self, latents_BCHW: Tensor, mixed: bool = False) -> np.ndarray:
        images = self.codec.decode(latents_BCHW, self.settings.autocast if mixed else "none")
        unit = (images / 2 + 0.5).clamp(0, 1)
        return (unit * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()

    @torch.no_grad()
    def encode(self, images_BhwC: np.ndarray) -> Tensor:
        expected = (*self.image_size, 3)
        if images_BhwC.shape[1:] != expected:
            raise WireError(f"images: got {images_BhwC.shape[1:]}, expected {expected}")
        return self.codec.encode(images_BhwC)

    # --- what is trained -------------------------------------------------------------------------------------

    def feature_extractor(self) -> FeatureExtractor:
        return UNetEncoder(self.base, self.unet_arguments)

    def add_lora(self, settings: LoraSettings, seed: int) -> list[nn.Parameter]:
        return add_lora(self.unet, settings, self.lora_targets, seed)

    def save_lora(self, folder: Path, settings: LoraSettings) -> Path:
        return save_adapter(self.pipeline_class, self.unet, folder, settings, self.settings.timesteps)

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
        with device_memory("fusing an adapter", "free memory, or do it on a machine with more"):
            fuse_adapter(self.pipeline)
            self.pipeline.save_pretrained(folder, safe_serialization=True)

    def distillation_loss(self, teacher: str) -> DistillationLoss:
        if (steps := self.schedule.settings.original_inference_steps) != SOLVER_STEPS:
            raise ModelError(
                f"teacher: got a model of original_inference_steps {steps}, expected {SOLVER_STEPS}; leave it out"
            )
        unet = TeacherUNet(teacher, self.unet.dtype, self.device)
        t_N, s_N = (timesteps.to(self.device) for timesteps in solver_pairs(SOLVER_STEPS))

        def loss(
            z_BCHW: Tensor, noise_BCHW: Tensor, steps_B: Tensor, prompts: Sequence[str], recompute: bool = False
        ) -> Tensor:
            """L_lcm from each solver step to the one before."""
            conditioning = self.embed(prompts)
            of_teacher = self.unet_arguments(self.embed([*prompts, *([""] * len(prompts))]))
            predict = partial(checkpoint, self.predict_at, use_reentrant=False) if recompute else self.predict_at
            return lcm_distillation(
                z_BCHW,
                noise_BCHW,
                t_N[steps_B],
                s_N[steps_B],
                torch.tensor(self.settings.guidance, device=self.device),
                lambda x_t, t: predict(x_t, t, conditioning),
                lambda x_t, t: unet.outputs(x_t, t, of_teacher),
                self.schedule.alphas_cumprod_T,
                self.schedule.settings.prediction_type,
            )

        return loss
