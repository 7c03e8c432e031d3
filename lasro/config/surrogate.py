"""The surrogate reward R_psi(z, c): its network, its training, and what the trainer must know of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator

from lasro.config.base import Autocast, Device, ModelSource, Positive, Rate, Settings, Share, Source, as_tuple
from lasro.config.model import BackboneModelSettings, ModelSettings
from lasro.functional.reward_totals import Combine, RewardObjective
from lasro.wire import Finite, Name

UNIT = "tie_margin_unit"
MAX_REWARDS = 32
"""Of a run, as of a request for scores."""


class BackboneSettings(Settings):
    """A model of the generator's latent space whose network the surrogate stands on; it need not be a few-step one.

    Device, dtype, quantization and size of images are those of `[model]`.
    """

    path: ModelSource
    """`bundled`, a diffusers folder, a hub id, or a single `.safetensors` file."""
    revision: str | None = None
    """Commit of a hub id; absent: the newest."""
    config: ModelSource | None = None
    """Diffusers folder or hub id whose configuration a single file takes; absent: the hub's for what it looks like."""
    guidance: Annotated[float, Field(ge=0, le=50)] = 1.0
    """Guidance scale that its network is told; at most 1 where it is told none, as that of a many-step model."""

    @property
    def name(self) -> str:
        """What it is called on any machine: the hub id, or the last part of a path."""
        return Path(self.path).name if Path(self.path).is_absolute() else self.path


def _as_backbone(value: Any) -> Any:
    """A string is a path alone."""
    return {"path": value} if isinstance(value, str) else value


class SurrogateSettings(Settings):
    """The surrogate R_psi(z, c) and how it is trained."""

    renamed: ClassVar[Mapping[str, str]] = {"rank_within_stage": "rank_within_num_steps"}

    backbone: Annotated[BackboneSettings | None, BeforeValidator(_as_backbone)] = None
    """Model whose network it stands on, as a path or a table; absent: the generator itself."""
    trunk: Literal["full", "adapter"] = "full"
    """Train conv_in, down and mid blocks themselves, or LoRA adapters on them."""
    adapter_rank: Annotated[int, Field(ge=1, le=512)] = 32
    """LoRA rank where trunk = "adapter"."""
    head_channels: Annotated[int, Field(ge=8, le=4096)] = 128
    """Width of the CNN head."""
    max_timestep: Annotated[int, Field(ge=1, le=1000)] = 200
    """Inputs are diffused to a random timestep below this one."""
    rank_within_num_steps: bool = False
    """Compare one-step samples only with one-step samples; off: those of both numbers of steps together."""
    tie_margin: Annotated[float, Field(ge=0)] = 0.02
    """Pairs whose totals differ by no more than this are dropped as ties; `tie_margin_unit` says in which unit."""
    tie_margin_unit: Literal["spread", "absolute"] = "spread"
    """A share of the totals' standard deviation within the groups of the replay, or a difference of totals itself."""
    learning_rate: Rate = 1e-4
    """Of AdamW."""
    warmup_steps: Annotated[int, Field(ge=1)] = 20
    """Steps over which the learning rate rises linearly: a fresh AdamW would shake pre-trained weights."""
    decay_steps: Annotated[int, Field(ge=1)] | None = None
    """Steps over which the learning rate falls to a twentieth, by a cosine; absent: it stays."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Of AdamW."""
    clip_norm: Positive = 1.0
    """Largest gradient norm."""
    groups_per_step: Annotated[int, Field(ge=1, le=512)] = 6
    """Groups in one optimiser step."""
    buffer_groups: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Newest groups kept in the replay buffer."""
    recent_groups: Annotated[int, Field(ge=1, le=1_000_000)] = 30
    """Half of each batch is drawn from this many newest groups, half from all."""
    max_policy_lag: Annotated[int, Field(ge=0)] = 10
    """Groups of a generator more updates than this behind the newest are replayed, but do not count as fresh."""
    held_out_share: Share = 0.05
    """Share of groups kept out of training to measure pair accuracy."""
    device: Device = "auto"
    """Where the trainer runs it."""
    autocast: Autocast = "none"
    """Dtype of the arithmetic in training; scores and gradients served follow `serve_autocast`."""
    serve_autocast: Autocast = "none"
    """Dtype of the arithmetic behind `score` and `gradient`."""
    seed: int = 0
    """Of batches, timesteps and noise."""

    @model_validator(mode="before")
    @classmethod
    def _warn_of_unit(cls, data: Any, info: ValidationInfo) -> Any:
        """Before release 0.3 a margin was a difference of totals; 0.4 need not say so any more."""
        source: Source | None = info.context
        if source is not None and isinstance(data, Mapping) and data.get("tie_margin") and UNIT not in data:
            source.warn(
                f"surrogate.tie_margin: {data['tie_margin']} is a share of the totals' standard deviation now; "
                f'set surrogate.{UNIT} = "absolute" for a difference of totals as before, or "spread" to say so'
            )
        return data


def with_stored_unit(stored: SurrogateSettings) -> SurrogateSettings:
    """Settings read from a file that names all of them; one older than `tie_margin_unit` meant a difference."""
    return stored if UNIT in stored.model_fields_set else stored.model_copy(update={UNIT: "absolute"})


class LatentSpace(Settings):
    """How a generator's VAE sees a known picture: a backbone of another model must see it alike."""

    height: Annotated[int, Field(ge=8, le=8192)]
    """Of the generator's images, in pixels."""
    width: Annotated[int, Field(ge=8, le=8192)]
    """Of the generator's images, in pixels."""
    downscale: Annotated[int, Field(ge=1, le=1024)]
    """Pixels of a latent's side."""
    test_card: Annotated[list[Finite], Field(min_length=1, max_length=65_536)]
    """Latents C x 4 x 4 of the picture, scaled as the network takes them, flattened."""


class SurrogateRun(Settings):
    """Body of `PUT /v1/runs/{run}`: all that the trainer needs to know of a run."""

    model: ModelSettings = ModelSettings()
    surrogate: SurrogateSettings = SurrogateSettings()
    latents: LatentSpace | None = None
    """The generator's, by which `surrogate.backbone` is checked; absent: it is not, and images are of its own size."""
    weights: dict[Name, Finite] = Field(min_length=1, max_length=MAX_REWARDS)
    """Weight of each reward in the total that is ranked."""
    combine: Combine = "sum"
    """What makes the total: the weighted sum, product of powers, or smallest weighted reward."""
    floors: dict[Name, Finite] = Field(default_factory=dict, max_length=MAX_REWARDS)
    """Rewards below which a sample is vetoed, and ranks below all that are not."""
    normalised: Annotated[tuple[Name, ...], BeforeValidator(as_tuple)] = Field(default=(), max_length=MAX_REWARDS)
    """Rewards taken in standard deviations from their mean, both of the groups in the replay."""

    @model_validator(mode="after")
    def _rewards_combine(self) -> SurrogateRun:
        self.reward_objective  # noqa: B018 - raises where they do not
        return self

    @property
    def trunk_model(self) -> ModelSettings:
        """The model that the surrogate stands on: the generator, or the backbone for images of the generator's size."""
        if (backbone := self.surrogate.backbone) is None:
            return self.model
        size = self.model if self.latents is None else self.latents
        taken = ("device", "dtype", "quantization", "gradient_checkpointing")
        of_generator = {name: getattr(self.model, name) for name in taken}
        return BackboneModelSettings(**dict(backbone), **of_generator, height=size.height, width=size.width)

    @property
    def reward_objective(self) -> RewardObjective:
        """How the rewards make one total."""
        return RewardObjective(self.weights, self.combine, self.floors, self.normalised)
