"""Few-step generators whose network is a UNet: what all such families share, whatever their sampler.

A family says which pipeline it is, what its prompts become, and what its UNet is called with (`sdxl`, `sd15`).

Shape legend: B batch, C latent channels, H, W latent height and width, h, w image height and width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import lasro.models.quiet  # noqa: F401  (before diffusers)

# isort: split

import numpy as np
import torch
from torch import Tensor, nn

from lasro.config import LoraSettings, ModelSettings
from lasro.config.base import Dtype
from lasro.config.model import UNET_TARGETS
from lasro.errors import ModelError, WireError
from lasro.functional.consistency import guidance_embedding
from lasro.models.adapter import Adapter, find_adapter, put_on
from lasro.models.adapter_names import UNET, ModuleNames
from lasro.models.base import (
    AdapterKeys,
    BaseAdapter,
    Conditioning,
    DistillationLoss,
    FeatureExtractor,
    GeneratorModel,
    SamplingStep,
)
from lasro.models.base_adapter import fuse_base_adapter, note_base_adapter
from lasro.models.device import autocast, device_memory, pick_device
from lasro.models.embedding_cache import EmbeddingCache
from lasro.models.float32_convolutions import compute_ends_in_float32
from lasro.models.latent_codec import LatentCodec
from lasro.models.lcm_distillation import lcm_loss
from lasro.models.load_pipeline import load_pipeline, load_prompt_tokens
from lasro.models.loading import loading
from lasro.models.lora import add_lora, fuse_adapter, initial_values, save_adapter, without_adapters
from lasro.models.prompt_tokens import PromptTokens, limit_tokens
from lasro.models.published_names import PublishedNames, published_names
from lasro.models.samplers.choose import choose_sampler
from lasro.models.samplers.lcm import LcmSampler
from lasro.models.shared_view import shared_view
from lasro.models.unet_checks import check_pipeline, image_size
from lasro.models.unet_encoder import UNetEncoder

MICRO_CONDITIONING = ("original_size", "target_size", "crops_top_left")
CODEC_BATCH = 4  # larger ones are slower on a CPU, and at 1024 x 1024 need gigabytes each


class UNetGenerator(GeneratorModel):
    """A few-step model in latent space, sampled as its stock scheduler does.

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
    takes_micro_conditioning: ClassVar[bool] = False
    """Whether the UNet is told the sizes of an image before it was scaled and cropped."""
    lora_targets = UNET_TARGETS
    takes_timesteps = True

    @classmethod
    def load(cls, path: str, settings: ModelSettings) -> UNetGenerator:
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
        self._check_micro_conditioning(settings)
        sampler = choose_sampler(pipeline.scheduler, settings, f"{where}: scheduler")
        check_pipeline(pipeline, self.text_encoders, settings, self.check_unet)
        self._prompt_tokens = limit_tokens(pipeline, self.tokenizers, self.text_encoders, where)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = sampler.scheduler
        for part in ("unet", "vae", *self.text_encoders):
            getattr(pipeline, part).requires_grad_(False).eval()
        with loading(where):
            pipeline.to(self.device)
        self.unet, self.sampler = pipeline.unet, sampler.to(self.device)
        self.adds_noise, self.base_adapter = sampler.adds_noise, self._fuse_base_adapter()
        if self.device.type == "cpu":
            pipeline.unet.to(memory_format=torch.channels_last)
            pipeline.vae.to(memory_format=torch.channels_last)
        batch = min(CODEC_BATCH, settings.max_batch or CODEC_BATCH)
        self.codec = LatentCodec(pipeline.vae, f"{where}: vae", batch, self.normalises)
        compute_ends_in_float32(self.unet)
        self.base = shared_view(self.unet)
        if settings.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.guidance_dim: int | None = self.unet.config.time_cond_proj_dim
        if self.guidance_dim is None and settings.guidance > 1:
            raise ModelError(f"guidance: got {settings.guidance}, but this UNet has no guidance embedding; set it to 1")
        scale = pipeline.vae_scale_factor
        height, width = self.image_size = image_size(self.unet.config, scale, settings)
        self.latent_shape = (self.unet.config.in_channels, height // scale, width // scale)
        self._embeddings = EmbeddingCache()
        self._encoders_adapted = False

    def _check_micro_conditioning(self, settings: ModelSettings) -> None:
        given = [name for name in MICRO_CONDITIONING if getattr(settings, name) is not None]
        if given and not self.takes_micro_conditioning:
            got = list(getattr(settings, given[0]))
            raise ModelError(f"{given[0]}: got {got}, but only an SDXL-class UNet is told such; leave it out")

    def _fuse_base_adapter(self) -> BaseAdapter | None:
        if self.settings.base_adapter is None:
            return None
        encoders = {name: getattr(self.pipeline, name) for name in self.text_encoders}
        return fuse_base_adapter(self.pipeline, ModuleNames({UNET: self.unet, **encoders}), self.settings.base_adapter)

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
            return self._embeddings.conditioning(prompts, of_base, self._embed_checked)

    def _embed_checked(self, prompt: str) -> dict[str, Tensor]:
        self.check_prompts([prompt])
        return self.embed_prompt(prompt)

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
        return self.sampler.steps(num_steps, self.settings.timesteps)

    def predict_clean(
        self, x_t_BCHW: Tensor, step: SamplingStep, conditioning: Conditioning, base: bool = False
    ) -> Tensor:
        output_BCHW = self._output(x_t_BCHW, torch.as_tensor(step.time, device=self.device), conditioning, base)
        return self.sampler.clean(output_BCHW, x_t_BCHW, step)

    def predict_at(
        self, x_t_BCHW: Tensor, timestep: int | Tensor, conditioning: Conditioning, base: bool = False
    ) -> Tensor:
        """f_theta of a consistency model at any timestep: one for all, or int64 [B]."""
        assert isinstance(self.sampler, LcmSampler)
        t = torch.as_tensor(timestep, device=self.device)
        return self.sampler.predict(self._output(x_t_BCHW, t, conditioning, base), x_t_BCHW, t)

    def _output(self, x_t_BCHW: Tensor, timestep: Tensor, conditioning: Conditioning, base: bool) -> Tensor:
        """What the network says, float32."""
        arguments = self.unet_arguments(conditioning)
        with autocast(self.device, self.settings.autocast):
            mixed = torch.is_autocast_enabled(self.device.type)
            x_t = x_t_BCHW.float() if mixed else x_t_BCHW.to(arguments["encoder_hidden_states"].dtype)
            return (self.base if base else self.unet)(x_t, timestep, **arguments).sample.float()

    def first_input(self, noise_BCHW: Tensor, step: SamplingStep) -> Tensor:
        return self.sampler.first_input(noise_BCHW, step)

    def next_input(
        self, x_t_BCHW: Tensor, z_BCHW: Tensor, noise_BCHW: Tensor, step: SamplingStep, next_step: SamplingStep
    ) -> Tensor:
        return self.sampler.next_input(x_t_BCHW, z_BCHW, noise_BCHW, step, next_step)

    def diffuse(self, z_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        return self.sampler.diffuse(z_BCHW, noise_BCHW, timesteps_B)

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
        file = save_adapter(self.pipeline_class, self.unet, folder, settings, self.settings.timesteps)
        if self.base_adapter is not None:
            note_base_adapter(file, self.base_adapter)
        return file

    def initial_lora(self, path: Path, settings: LoraSettings) -> list[Tensor]:
        return initial_values(self.unet, find_adapter(path, self._module_names()), settings)

    def load_lora(self, path: Path, partial: bool = False) -> AdapterKeys:
        adapter = self.find_lora(path, partial)
        self.put_lora(adapter)
        return adapter.keys

    def find_lora(self, path: Path, partial: bool = False) -> Adapter:
        return find_adapter(path, self._module_names(), partial)

    def put_lora(self, adapter: Adapter) -> None:
        put_on(self.pipeline.components, adapter)
        self._encoders_adapted = not adapter.parts.keys().isdisjoint(self.text_encoders)
        self._embeddings.clear()

    def _adaptable_networks(self) -> dict[str, nn.Module]:
        return {UNET: self.base, **{name: getattr(self.pipeline, name) for name in self.text_encoders}}

    def _module_names(self) -> ModuleNames:
        return ModuleNames(self._adaptable_networks())

    def published_names(self) -> PublishedNames:
        return published_names(self.pipeline, self._adaptable_networks(), self.sampler.settings.prediction_type)

    def save_fused(self, folder: Path, dtype: Dtype | None = None) -> None:
        with device_memory("fusing an adapter", "free memory, or do it on a machine with more"):
            fuse_adapter(self.pipeline, dtype)
            self.pipeline.save_pretrained(folder, safe_serialization=True)

    def distillation_loss(self, teacher: str) -> DistillationLoss:
        if not isinstance(self.sampler, LcmSampler):
            raise ModelError(
                f"teacher: got {teacher}, but a model that is sampled by {self.sampler.name} was distilled by another "
                'loss than that of an LCM; set method.regulariser = "base"'
            )
        return lcm_loss(self, self.sampler, teacher)
