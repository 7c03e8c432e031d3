"""What the rest of the project may ask of a generator, and nothing more: one class for each model family.

Nobody outside `lasro.models` touches a pipeline, a scheduler, a text encoder or a timestep: steps are counted by index,
and what a family feeds its network with is its own affair. docs/add-a-model-family.md shows how to write one.

Shape legend: B batch, C latent channels, H, W latent height and width, h, w image height and width.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from lasro.config import LoraSettings, ModelSettings
from lasro.config.base import Dtype
from lasro.errors import ModelError
from lasro.models.conditioning import Conditioning, SamplingStep
from lasro.models.distillation import DistillationLoss
from lasro.models.feature_extractor import FeatureExtractor
from lasro.models.prompt_tokens import PromptTokens

if TYPE_CHECKING:
    from lasro.models.adapter import Adapter, AdapterKeys
    from lasro.models.base_adapter import BaseAdapter
    from lasro.models.published_names import PublishedNames


class GeneratorModel(ABC):
    """A few-step generator: prompts to conditioning, noise to clean latents, latents to images.

    Two sets of weights over the same memory: the base, frozen, and the base with the adapter that is trained.
    """

    settings: ModelSettings
    device: torch.device
    latent_shape: tuple[int, int, int]
    """C, H, W."""
    image_size: tuple[int, int]
    """h, w in pixels."""
    takes_timesteps: ClassVar[bool] = False
    """Whether `steps` goes by `settings.timesteps`; where it does not, `load_model` refuses these."""
    adds_noise: bool = True
    """Whether the sampler adds noise after the first step: else two-step samples of one first noise are the same."""
    tilts_noise: bool = False
    """Whether the adapter moves the first noise, from which the base then draws, in place of its predictions."""
    base_adapter: BaseAdapter | None = None
    """What was fused into the base; None: nothing."""
    lora_targets: tuple[str, ...]
    """Endings of the names of the modules that get an adapter where the settings name none."""

    @classmethod
    @abstractmethod
    def load(cls, path: str, settings: ModelSettings) -> GeneratorModel:
        """Load the model of a diffusers folder or hub id; raises ModelError naming what is missing or unsupported."""

    @classmethod
    def load_shapes(
        cls, path: str, settings: ModelSettings, without_memory: Callable[[dict[str, nn.Module]], None]
    ) -> GeneratorModel:
        """As `load`, but no weights are read: `without_memory` is given all networks by name, on the meta device."""
        raise ModelError(f"model.path {settings.path}: the memory of a {cls.__name__} cannot be computed")

    @classmethod
    def load_prompt_tokens(cls, path: str, settings: ModelSettings) -> PromptTokens | None:
        """What counts the tokens of prompts, without the weights; None for a family that cannot tell before `embed`."""
        return None

    # --- sampling --------------------------------------------------------------------------------------------

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Raises PromptTooLongError for the first that `embed` would refuse."""
        for prompt in prompts:
            self.embed([prompt])

    @abstractmethod
    def embed(self, prompts: Sequence[str], base: bool = False) -> Conditioning:
        """The prompts' conditioning; raises PromptTooLongError rather than cutting a prompt short.

        With `base` it is the frozen base's, where a loaded adapter changes the text encoders too. A prompt's row does
        not depend on the others: a resumed run would come out differently.
        """

    def embed_ahead(self, prompts: Sequence[str]) -> None:
        """Embed these prompts now, so that what embedding needs can be freed until another prompt comes.

        Here, for a family that keeps no embeddings, they are only checked. Raises PromptTooLongError.
        """
        self.check_prompts(prompts)

    @abstractmethod
    def steps(self, num_steps: int) -> tuple[SamplingStep, ...]:
        """The sampler's steps, noisiest first: the first of `settings.timesteps`, where there are any.

        Raises ModelError for more steps than these.
        """

    def with_timesteps(self, timesteps: tuple[int, ...] | None) -> Self:
        """This model, over the same memory, with the steps that it has by these settings; None: the scheduler's own."""
        other = copy.copy(self)
        other.settings = self.settings.model_copy(update={"timesteps": timesteps})
        return other

    @abstractmethod
    def predict_clean(
        self, x_t_BCHW: Tensor, step: SamplingStep, conditioning: Conditioning, base: bool = False
    ) -> Tensor:
        """f_theta(x_t, t, c), float32 [B, C, H, W]: the clean latents; of the frozen base where `base` is set."""

    def check_consistency(self, wanted_by: str) -> None:
        """Raise ModelError, naming who wants it, unless this is a consistency model: one that `predict_at` knows."""
        raise ModelError(
            f"{wanted_by}: got a {type(self).__name__} that is no consistency model, which predicts at any timestep; "
            "take a latent consistency model, or another method"
        )

    def predict_at(
        self, x_t_BCHW: Tensor, timestep: int | Tensor, conditioning: Conditioning, base: bool = False
    ) -> Tensor:
        """f_theta(x_t, t, c) of a consistency model at any timesteps, 0 to 999: one for all, or int64 [B].

        Raises ModelError for another one, which `check_consistency` tells beforehand.
        """
        raise ModelError(f"{type(self).__name__}: is no consistency model, which predicts at any timestep")

    def tilt_noise(self) -> None:
        """Have the adapter move the first noise from now on; raises ModelError for a family that cannot."""
        raise ModelError(f"noise-tilting: {type(self).__name__} has no adapter of the noise; take another method")

    def noise_shift(self, x_t_BCHW: Tensor, step: SamplingStep, conditioning: Conditioning) -> Tensor:
        """D [B, C, H, W], what the adapter adds to a first input, with a gradient; of a model that tilts noise."""
        raise ModelError(f"noise-tilting: {type(self).__name__} has no adapter of the noise")

    def first_input(self, noise_BCHW: Tensor, step: SamplingStep) -> Tensor:
        """The input x_tau0 of `step`, the sampler's first, from noise ~ N(0, I)."""
        return noise_BCHW

    @abstractmethod
    def next_input(
        self, x_t_BCHW: Tensor, z_BCHW: Tensor, noise_BCHW: Tensor, step: SamplingStep, next_step: SamplingStep
    ) -> Tensor:
        """The input of `next_step`, from the input x_t of `step` before it and the clean latents z predicted there.

        `noise_BCHW` ~ N(0, I). A sampler that goes on from z alone, as an LCM's does, leaves out x_t; one that adds no
        noise leaves out that.
        """

    @abstractmethod
    def diffuse(self, z_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        """Clean latents diffused to `timesteps_B` int64, 0 (clean) to 999 (noise): what the surrogate looks at."""

    # --- images ----------------------------------------------------------------------------------------------

    @abstractmethod
    def decode_pixels(self, latents_BCHW: Tensor) -> Tensor:
        """Images float32 [B, 3, h, w], 0 to 1 and with a gradient, but not clamped."""

    @abstractmethod
    def decode(self, latents_BCHW: Tensor, mixed: bool = False) -> np.ndarray:
        """Images uint8 [B, h, w, 3]; with `mixed` in the settings' autocast dtype, else as the weights are."""

    def decode_to_score(self, latents_BCHW: Tensor) -> np.ndarray:
        """`decode` with `mixed` for images that are only scored; by `settings.tiny_vae` where a family knows that."""
        return self.decode(latents_BCHW, mixed=True)

    @abstractmethod
    def encode(self, images_BhwC: np.ndarray) -> Tensor:
        """Latents float32 [B, C, H, W] of uint8 images of the model's own size; raises WireError for another size."""

    def encode_any_size(self, images_BhwC: np.ndarray) -> Tensor:
        """`encode` of images of another size than the model's own, with sides that its VAE takes."""
        raise ModelError(f"surrogate.backbone: latents of a {type(self).__name__} cannot be compared; leave it out")

    # --- what is trained -------------------------------------------------------------------------------------

    @abstractmethod
    def feature_extractor(self) -> FeatureExtractor:
        """A new one over the base's weights, nothing of it trainable yet."""

    def keep_only_trunk(self) -> None:  # noqa: B027  (a family need not)
        """Free the weights that a `feature_extractor` does not use; nothing can be drawn any more.

        Here, for a family that does not tell them apart, all are kept.
        """

    @abstractmethod
    def add_lora(self, settings: LoraSettings, seed: int) -> list[nn.Parameter]:
        """Put a fresh trainable LoRA on the generator; returns its parameters, float32, in a fixed order."""

    def shard(self) -> nn.Module:
        """Share the network's frozen weights out among all processes, which make its passes together from then on.

        Of a model that was loaded for it, after `add_lora`, which it leaves whole. Returns the network.
        """
        raise ModelError(f"model.shard: got true, which {type(self).__name__} does not take; leave it out")

    @abstractmethod
    def save_lora(self, folder: Path, settings: LoraSettings) -> Path:
        """Write the trained LoRA so that stock diffusers loads it with `load_lora_weights`; returns its file."""

    @abstractmethod
    def initial_lora(self, path: Path, settings: LoraSettings) -> list[Tensor]:
        """Values for the parameters of `add_lora`, untouched so far, with which they are the adapter at `path`.

        Raises ModelError saying which settings would fit where these do not.
        """

    @abstractmethod
    def load_lora(self, path: Path, partial: bool = False) -> AdapterKeys:
        """Load an adapter: its file or folder, of ours or of another tool (docs/train-your-model.md).

        Raises ModelError for one that is broken or of which no key has a place here and, unless `partial`, for one of
        which not every key has. Of a model that carries no adapter yet.
        """

    def find_lora(self, path: Path, partial: bool = False) -> Adapter:
        """What `load_lora` would load, without loading it: to be scaled, and written in other forms.

        Raises ModelError, also for a family of which no other form is known.
        """
        raise ModelError(f"{path}: adapters of {type(self).__name__} have no other form; leave out format and strength")

    def put_lora(self, adapter: Adapter) -> None:
        """Load what `find_lora` found. Of a model that carries no adapter yet."""
        raise ModelError(f"{adapter.path}: {type(self).__name__} loads no adapter but from a file")

    def published_names(self) -> PublishedNames:
        """What other tools call this model and its modules; raises ModelError for a family that they do not know."""
        raise ModelError(f"{type(self).__name__}: no names in other tools are known; leave out the format")

    @abstractmethod
    def save_fused(self, folder: Path, dtype: Dtype | None = None) -> None:
        """Fuse the loaded adapter into the weights and write a whole diffusers folder; raises ModelError.

        `dtype`: of the weights that are written; None: as they are.
        """

    def distillation_loss(self, teacher: str | None) -> DistillationLoss:
        """The loss that the model was distilled by, against a teacher's folder or hub id; raises ModelError.

        None: without a teacher, whose place the noise takes that was added.
        """
        raise ModelError(f"teacher: got {teacher}, but {type(self).__name__} has no distillation loss; leave it out")
