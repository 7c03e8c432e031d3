"""Few-step generators whose network is a transformer with one text encoder: what all such families share.

A family says which parts it has, what its prompts become, and what its network is called with (`sana_sprint`,
`z_image`, `flux2_klein`).

Shape legend: B batch, C latent channels, H, W latent height and width, h, w image height and width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import lasro.models.quiet  # noqa: F401  (before diffusers)

# isort: split

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer

from lasro.config import LoraSettings, ModelSettings
from lasro.config.base import Dtype
from lasro.errors import ModelError
from lasro.models.adapter import Adapter, find_adapter
from lasro.models.adapter_names import TRANSFORMER, ModuleNames
from lasro.models.checkpointing import checkpoint_blocks
from lasro.models.compiled import compile_network, prepare_compiler
from lasro.models.conditioning import Conditioning, SamplingStep
from lasro.models.device import autocast, device_memory, move_pipeline, pick_device
from lasro.models.feature_extractor import FeatureExtractor
from lasro.models.files import is_single_file
from lasro.models.image_codec import ImageCodec
from lasro.models.latent_codec import LatentCodec
from lasro.models.load_pipeline import load_pipeline, load_tokenizers
from lasro.models.loading import loading
from lasro.models.lora import add_lora, fuse_adapter, initial_values, save_adapter
from lasro.models.pipeline_generator import PipelineGenerator
from lasro.models.prompt_embeddings import PromptEmbeddings
from lasro.models.prompt_encoder import MEMORY_ADVICE
from lasro.models.prompt_tokens import PromptTokens, check_tokenizer
from lasro.models.quantization import check_fusable, quantize
from lasro.models.rendered_prompts import RenderedPrompts
from lasro.models.sharding import WithoutAdapter, shard_network
from lasro.models.shared_view import free_all_but, shared_view
from lasro.models.transformer_trunk import TransformerTrunk

TEXT_ENCODER = "text_encoder"
OF_UNETS = (
    "unet",
    "config",
    "base_adapter",
    "prediction_type",
    "eta",
    "original_size",
    "target_size",
    "crops_top_left",
    "vae_slicing",
    "vae_tile",
    "tiny_vae",
)
"""Settings of the model that say nothing to a transformer."""
PARTS = (TRANSFORMER, "vae", "scheduler", "tokenizer", TEXT_ENCODER)


class Parts(NamedTuple):
    """Classes of a family's parts, of diffusers, and what decodes its latents."""

    transformer: Any
    vae: Any
    scheduler: Any
    codec: type[LatentCodec]


class TransformerGenerator(PipelineGenerator):
    """A few-step transformer in latent space, sampled as its stock pipeline does.

    `transformer` may carry a trained adapter; `base` is the same network without one, over the same memory.
    """

    pipeline_class: ClassVar[Any]
    """Of diffusers."""
    parts: ClassVar[Parts]
    has_guidance: ClassVar[bool] = False
    """Whether the network takes a guidance scale."""

    @classmethod
    def load(cls, path: str, settings: ModelSettings) -> Self:
        cls._check_source(path, settings)
        return cls(load_pipeline(cls.pipeline_class, PARTS, {}, path, settings), settings)

    @classmethod
    def load_prompt_tokens(cls, path: str, settings: ModelSettings) -> PromptTokens:
        cls._check_source(path, settings)
        names = (("tokenizer",), (TEXT_ENCODER,))
        [(tokenizer, config)] = load_tokenizers(*names, path, settings, AutoTokenizer, AutoConfig)
        return PromptTokens([(cls.rendered_prompts(tokenizer), config)])

    @classmethod
    def _check_source(cls, path: str, settings: ModelSettings) -> None:
        kind = cls.pipeline_class.__name__
        if is_single_file(path):
            raise ModelError(f"model.path {path}: got a single file, expected the folder or hub id of a {kind}")
        if settings.scheduler != "own":
            raise ModelError(f"model.scheduler: got {settings.scheduler}, which a {kind} does not take; leave it out")
        for name in OF_UNETS:
            if (value := getattr(settings, name)) is not None and value is not False:
                raise ModelError(f"model.{name}: got {value}, which a {kind} does not take; leave it out")

    def __init__(self, pipeline: Any, settings: ModelSettings) -> None:
        """Of a stock pipeline, whose parts are frozen and moved to the settings' device; raises ModelError."""
        self.pipeline, self.settings = pipeline, settings
        self.device = pick_device(settings.device)
        where = f"model.path {settings.path}"
        self._check(where)
        if settings.guidance > 1 and not self.has_guidance:
            raise ModelError(
                f"guidance: got {settings.guidance}, but this model has no guidance embedding; set it to 1"
            )
        self._prompt_tokens = PromptTokens([(self.rendered_prompts(pipeline.tokenizer), pipeline.text_encoder.config)])
        pipeline.set_progress_bar_config(disable=True)
        for part in (TRANSFORMER, "vae", TEXT_ENCODER):
            getattr(pipeline, part).requires_grad_(False).eval()
        with loading(where):
            move_pipeline(pipeline, self.device, left=(TRANSFORMER,) if settings.shard else ())
        self.codec = ImageCodec(pipeline.vae, settings, self.device, kind=self.parts.codec)
        self.transformer, self.dtype = pipeline.transformer, pipeline.transformer.dtype
        quantize(self.transformer, settings)
        if settings.gradient_checkpointing:  # first: the base is what the surrogate's trunk is a view of
            checkpoint_blocks(self.transformer)
        self.base: Any = shared_view(self.transformer)
        if settings.compile:
            prepare_compiler(self.device)
            compile_network(self.transformer)
            compile_network(self.base)
        self.latent_shape, self.image_size = self.shapes()
        self._embeddings = PromptEmbeddings(self.device, None, str, self._embed_checked)

    def _check(self, where: str) -> None:
        for name, kind in (("scheduler", self.parts.scheduler), ("vae", self.parts.vae), (TRANSFORMER, self.parts[0])):
            if type(part := getattr(self.pipeline, name)) is not kind:
                raise ModelError(f"{where}: {name}: got a {type(part).__name__}, expected a {kind.__name__}")
        check_tokenizer(self.pipeline.tokenizer, self.pipeline.text_encoder.config, f"{where}: tokenizer")
        try:
            self.check_parts()
        except ModelError as error:
            raise ModelError(f"{where}: {error}") from error

    # --- what a family says ----------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def rendered_prompts(cls, tokenizer: Any) -> RenderedPrompts:
        """What counts a prompt's tokens in all that the text encoder is given with it."""

    @abstractmethod
    def check_parts(self) -> None:
        """Raise ModelError, beginning with the part's name, for parts that do not fit each other or this family."""

    @abstractmethod
    def shapes(self) -> tuple[tuple[int, int, int], tuple[int, int]]:
        """C, H, W of the latents, and h, w of the images in pixels."""

    @abstractmethod
    def embed_prompt(self, prompt: str) -> dict[str, Tensor]:
        """One prompt's tensors, without a batch axis."""

    @abstractmethod
    def clean(self, output_BCHW: Tensor, x_t_BCHW: Tensor, time: Tensor) -> Tensor:
        """f_theta of the network's output at a sampler's time, a scalar."""

    @abstractmethod
    def run(self, network: Any, x_t_BCHW: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's output for latents at the sampler's times float32 [B]."""

    @abstractmethod
    def time_of(self, timesteps_B: Tensor) -> Tensor:
        """The sampler's times float32 [B] of timesteps int64, 0 (clean) to 999 (noise)."""

    @abstractmethod
    def cut(self, network: Any) -> tuple[Sequence[str], int]:
        """Leave the first half of a network's blocks; which of its parts a surrogate trains, and the width D."""

    def features(self, network: Any, x_t_BCHW: Tensor, time_B: Tensor, conditioning: Conditioning) -> Tensor:
        """Features [B, D, H', W'] of a network that was `cut`; here, where its output is on the grid already."""
        return self.run(network, x_t_BCHW, time_B, conditioning)

    # --- sampling --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed(self, prompts: Sequence[str], base: bool = False) -> Conditioning:
        """As `GeneratorModel.embed`; cached."""
        return self._embeddings.stacked(prompts)

    def _embed_checked(self, prompt: str) -> dict[str, Tensor]:
        self.check_prompts([prompt])
        with device_memory("embedding a prompt", MEMORY_ADVICE):
            return self.embed_prompt(prompt)

    def input_dtype(self) -> torch.dtype:
        """Of what the network is given: autocast takes float32."""
        return torch.float32 if torch.is_autocast_enabled(self.device.type) else self.dtype

    def predict_clean(
        self, x_t_BCHW: Tensor, step: SamplingStep, conditioning: Conditioning, base: bool = False
    ) -> Tensor:
        time = torch.tensor(step.time, dtype=torch.float32, device=self.device)
        with autocast(self.device, self.settings.autocast):
            network = self.base if base else self.transformer
            output_BCHW = self.run(network, x_t_BCHW, time.expand(len(x_t_BCHW)), conditioning)
        return self.clean(output_BCHW.float(), x_t_BCHW, time)

    # --- what is trained -------------------------------------------------------------------------------------

    def feature_extractor(self) -> FeatureExtractor:
        view = shared_view(self.base)
        trained_parts, width = self.cut(view)
        return TransformerTrunk(view, trained_parts, self._features, width)

    def keep_only_trunk(self) -> None:
        free_all_but(self.feature_extractor(), self.transformer, self.base)

    def _features(self, network: Any, x_t_BCHW: Tensor, timesteps_B: Tensor, conditioning: Conditioning) -> Tensor:
        return self.features(network, x_t_BCHW, self.time_of(timesteps_B), conditioning)

    def add_lora(self, settings: LoraSettings, seed: int) -> list[nn.Parameter]:
        return add_lora(self.transformer, settings, self.lora_targets, seed, self.device)

    def shard(self) -> nn.Module:
        self.base = WithoutAdapter(self.transformer)  # first: a view of the weights would keep them whole
        shard_network(self.transformer, self.device)
        return self.transformer

    def save_lora(self, folder: Path, settings: LoraSettings) -> Path:
        return save_adapter(self.pipeline_class, self.transformer, folder, settings, part=TRANSFORMER)

    def initial_lora(self, path: Path, settings: LoraSettings) -> list[Tensor]:
        return initial_values(self.transformer, self.find_lora(path), settings, TRANSFORMER)

    def find_lora(self, path: Path, partial: bool = False) -> Adapter:
        return find_adapter(path, ModuleNames({TRANSFORMER: self.base}), partial)

    def save_fused(self, folder: Path, dtype: Dtype | None = None) -> None:
        check_fusable(self.settings)
        with device_memory("fusing an adapter", "free memory, or do it on a machine with more"):
            fuse_adapter(self.pipeline, dtype)
            self.pipeline.save_pretrained(folder, safe_serialization=True)
