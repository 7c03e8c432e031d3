"""Few-step generators whose network is a UNet: what all such families share, whatever their sampler.

A family says which pipeline it is, what its prompts become, and what its UNet is called with (`sdxl`, `sd15`).

Shape legend: B batch, C latent channels, H, W latent height and width, h, w image height and width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lasro.models.quiet  # noqa: F401  (before diffusers)

# isort: split

import torch
from torch import Tensor, nn

from lasro.config import LoraSettings, ModelSettings
from lasro.config.base import Dtype
from lasro.config.model import UNET_TARGETS
from lasro.errors import ModelError
from lasro.functional.consistency import guidance_embedding
from lasro.functional.noise_tilting import noise_shift
from lasro.models.adapter import Adapter, find_adapter
from lasro.models.adapter_names import UNET, ModuleNames
from lasro.models.adapter_notes import NOISE_METADATA, note, noted
from lasro.models.base_adapter import BaseAdapter, described, find_base_adapter, fuse_base_adapter, note_base_adapter
from lasro.models.checkpointing import checkpoint_blocks
from lasro.models.compiled import compile_network, prepare_compiler
from lasro.models.conditioning import Conditioning, SamplingStep
from lasro.models.device import autocast, device_memory, pick_device
from lasro.models.distillation import DistillationLoss
from lasro.models.embedding_store import open_store
from lasro.models.feature_extractor import FeatureExtractor
from lasro.models.float32_convolutions import compute_ends_in_float32
from lasro.models.image_codec import ImageCodec
from lasro.models.lcm_distillation import lcm_loss
from lasro.models.load_pipeline import load_pipeline, load_prompt_tokens
from lasro.models.loading import loading
from lasro.models.lora import add_lora, fuse_adapter, initial_values, save_adapter
from lasro.models.pipeline_generator import PipelineGenerator
from lasro.models.prompt_encoder import PromptEncoder
from lasro.models.prompt_tokens import PromptTokens, limit_tokens
from lasro.models.published_names import PublishedNames, published_names
from lasro.models.quantization import check_fusable, quantize
from lasro.models.samplers.choose import choose_sampler
from lasro.models.samplers.lcm import LcmSampler
from lasro.models.sharding import WithoutAdapter, shard_network
from lasro.models.shared_view import free_all_but, shared_view
from lasro.models.text_encoders import TextEncoders
from lasro.models.unet_checks import check_micro_conditioning, check_pipeline, image_size
from lasro.models.unet_encoder import UNetEncoder

CHANNELS_LAST = ("cpu", "cuda")
"""Devices whose convolutions are faster so: oneDNN's and, in 16 bits, cuDNN's on tensor cores."""


class UNetGenerator(PipelineGenerator):
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
        found = load_pipeline(cls.pipeline_class, parts, cls.load_options, path, settings, unread=cls.text_encoders)
        return cls(found, settings)

    @classmethod
    def load_shapes(
        cls, path: str, settings: ModelSettings, without_memory: Callable[[dict[str, nn.Module]], None]
    ) -> UNetGenerator:
        networks = ("unet", "vae", *cls.text_encoders)
        parts = ("scheduler", *cls.tokenizers, *networks)
        found = load_pipeline(cls.pipeline_class, parts, cls.load_options, path, settings, unread=networks)
        without_memory({name: getattr(found, name) for name in networks})
        return cls(found, settings, of_shapes=True)

    @classmethod
    def load_prompt_tokens(cls, path: str, settings: ModelSettings) -> PromptTokens:
        return load_prompt_tokens(cls.tokenizers, cls.text_encoders, path, settings)

    def __init__(self, pipeline: Any, settings: ModelSettings, of_shapes: bool = False) -> None:
        """Of a stock pipeline, whose parts are frozen and moved to the settings' device; raises ModelError.

        `of_shapes`: its networks hold no values, so nothing is fused into them, and no embedding goes to the disk.
        """
        self.pipeline, self.settings = pipeline, settings
        self.device = pick_device(settings.device)
        where = f"model.path {settings.path}"
        check_micro_conditioning(settings, self.takes_micro_conditioning)
        sampler = choose_sampler(pipeline.scheduler, settings, f"{where}: scheduler")
        check_pipeline(pipeline, self.text_encoders, settings, self.check_unet)
        self._prompt_tokens = limit_tokens(pipeline, self.tokenizers, self.text_encoders, where)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = sampler.scheduler
        for part in ("unet", "vae", *self.text_encoders):
            getattr(pipeline, part).requires_grad_(False).eval()
        with loading(where):
            encoders = TextEncoders(pipeline, self.text_encoders, settings, self.device)
            encoders.move_pipeline(left=(UNET,) if settings.shard else ())
            if of_shapes:  # let go as idle and read again, they would count as computed
                encoders.pin()
        self.unet, self.sampler = pipeline.unet, sampler.to(self.device)
        self.adds_noise, self.base_adapter = sampler.adds_noise, self._take_base_adapter(encoders, of_shapes)
        if self.device.type in CHANNELS_LAST:
            pipeline.unet.to(memory_format=torch.channels_last)
            pipeline.vae.to(memory_format=torch.channels_last)
        self.codec = ImageCodec(pipeline.vae, settings, self.device, self.normalises)
        compute_ends_in_float32(self.unet)
        if not of_shapes:
            quantize(self.unet, settings)
        if settings.gradient_checkpointing:  # first: the base is what the surrogate's trunk is a view of
            checkpoint_blocks(self.unet)
        self.base: Any = shared_view(self.unet)
        if settings.compile:
            prepare_compiler(self.device)
            compile_network(self.unet)
            compile_network(self.base)
        self.guidance_dim: int | None = self.unet.config.time_cond_proj_dim
        if self.guidance_dim is None and settings.guidance > 1:
            raise ModelError(f"guidance: got {settings.guidance}, but this UNet has no guidance embedding; set it to 1")
        scale = pipeline.vae_scale_factor
        height, width = self.image_size = image_size(self.unet.config, scale, settings)
        self.latent_shape = (self.unet.config.in_channels, height // scale, width // scale)
        store = None if of_shapes else open_store()
        self.prompt_encoder = PromptEncoder(pipeline, encoders, self._prompt_tokens, self.embed_prompt, store)

    def _take_base_adapter(self, encoders: TextEncoders, of_shapes: bool) -> BaseAdapter | None:
        """Find the adapter that the settings name, and fuse it unless there are no values to fuse it with."""
        if (source := self.settings.base_adapter) is None:
            return None
        networks = {name: getattr(self.pipeline, name) for name in (UNET, *self.text_encoders)}
        found = find_base_adapter(ModuleNames(networks), source)
        if not of_shapes:
            encoders.pin_fused(found)
            fuse_base_adapter(self.pipeline, found)
        return described(found, source)

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
        """As `GeneratorModel.embed`; kept in memory and on disk."""
        return self.prompt_encoder.embed(prompts, base)

    def embed_ahead(self, prompts: Sequence[str]) -> None:
        self.prompt_encoder.embed_ahead(prompts)

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
        if self.tilts_noise and not base:
            base = True
            if step.index == 0:
                x_t_BCHW = x_t_BCHW + self.noise_shift(x_t_BCHW, step, conditioning)
        output_BCHW = self._output(x_t_BCHW, torch.as_tensor(step.time, device=self.device), conditioning, base)
        return self.sampler.clean(output_BCHW, x_t_BCHW, step)

    def tilt_noise(self) -> None:
        self.tilts_noise = True

    def noise_shift(self, x_t_BCHW: Tensor, step: SamplingStep, conditioning: Conditioning) -> Tensor:
        t = torch.as_tensor(step.time, device=self.device)
        output_BCHW = self._output(x_t_BCHW, t, conditioning, base=False)
        with torch.no_grad():
            base_BCHW = self._output(x_t_BCHW, t, conditioning, base=True)
        return noise_shift(output_BCHW, base_BCHW)

    def check_consistency(self, wanted_by: str) -> None:
        if not isinstance(self.sampler, LcmSampler):
            raise ModelError(
                f"{wanted_by}: got a model that is sampled by {self.sampler.name}, expected a latent consistency "
                "model, which predicts at any timestep; take one, or another method"
            )

    def predict_at(
        self, x_t_BCHW: Tensor, timestep: int | Tensor, conditioning: Conditioning, base: bool = False
    ) -> Tensor:
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

    # --- what is trained -------------------------------------------------------------------------------------

    def feature_extractor(self) -> FeatureExtractor:
        return UNetEncoder(self.base, self.unet_arguments)

    def keep_only_trunk(self) -> None:
        free_all_but(self.feature_extractor(), self.unet, self.base)

    def add_lora(self, settings: LoraSettings, seed: int) -> list[nn.Parameter]:
        return add_lora(self.unet, settings, self.lora_targets, seed, self.device)

    def shard(self) -> nn.Module:
        self.base = WithoutAdapter(self.unet)  # first: a view of the weights would keep them whole
        shard_network(self.unet, self.device)
        return self.unet

    def save_lora(self, folder: Path, settings: LoraSettings) -> Path:
        file = save_adapter(self.pipeline_class, self.unet, folder, settings, self.settings.timesteps)
        if self.base_adapter is not None:
            note_base_adapter(file, self.base_adapter)
        if self.tilts_noise:
            note(file, NOISE_METADATA, "true")
        return file

    def initial_lora(self, path: Path, settings: LoraSettings) -> list[Tensor]:
        adapter = self.find_lora(path)
        if (noted(adapter.path, NOISE_METADATA) is not None) != self.tilts_noise:
            raise ModelError(
                f"{path}: was {'not ' if self.tilts_noise else ''}trained to move the first noise; begin a run of "
                f"method.type noise-tilting with one that was, and others with one that was not"
            )
        return initial_values(self.unet, adapter, settings)

    def find_lora(self, path: Path, partial: bool = False) -> Adapter:
        return find_adapter(path, self._module_names(), partial)

    def put_lora(self, adapter: Adapter) -> None:
        if noted(adapter.path, NOISE_METADATA) is not None:
            self.tilt_noise()
        if not adapter.parts.keys().isdisjoint(self.text_encoders):
            self.prompt_encoder.adapt()
        super().put_lora(adapter)

    def _adaptable_networks(self) -> dict[str, nn.Module]:
        return {UNET: self.base, **{name: getattr(self.pipeline, name) for name in self.text_encoders}}

    def _module_names(self) -> ModuleNames:
        return ModuleNames(self._adaptable_networks())

    def published_names(self) -> PublishedNames:
        return published_names(self.pipeline, self._adaptable_networks(), self.sampler.settings.prediction_type)

    def save_fused(self, folder: Path, dtype: Dtype | None = None) -> None:
        check_fusable(self.settings)
        if self.tilts_noise:
            raise ModelError("adapter: moves the first noise, which no weights can hold; use it with lasro generate")
        with device_memory("fusing an adapter", "free memory, or do it on a machine with more"):
            self.prompt_encoder.encoders.load()
            fuse_adapter(self.pipeline, dtype)
            self.pipeline.save_pretrained(folder, safe_serialization=True)

    def distillation_loss(self, teacher: str | None) -> DistillationLoss:
        if not isinstance(self.sampler, LcmSampler):
            raise ModelError(
                f"teacher: got {teacher}, but a model that is sampled by {self.sampler.name} was distilled by another "
                'loss than that of an LCM; set method.regulariser = "base"'
            )
        return lcm_loss(self, self.sampler, teacher)
