"""Settings of the recipe: TOML checked by frozen pydantic models, unknown keys refused.

recipe = load_recipe(Path("full.toml"))
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from lasro.config.base import Positive, Rate, Settings, Share
from lasro.errors import ConfigError
from lasro.validation import explain
from lasro.wire import Name

Count = Annotated[int, Field(ge=1)]


class DataSettings(Settings):
    """What is drawn, and how truly it is told."""

    image_px: Annotated[int, Field(ge=16, multiple_of=8)] = 128
    """Side of the images, pixels."""
    emoji_share: Share = 0.5
    """Share of emoji among the images; the rest are shapes. 0 needs no emoji file."""
    single_objects: Share = 0.3
    """Share of scenes with one shape; the rest have two."""
    white_backgrounds: Share = 0.5
    """Share of white backgrounds; the rest have one of the four tints."""
    white_named: Share = 0.3
    """Share of white backgrounds that the caption names."""
    swapped_colors: Share = 0.3
    """Share of two-object captions with the colours of the two objects swapped."""
    wrong_relations: Share = 0.3
    """Share of two-object captions with another relation than that of the scene."""
    style_named: Share = 0.6
    """Share of emoji captions that name the drawing style."""
    scenes: Count = 65_536
    """Different shape scenes, and captioned emoji likewise, that training draws from."""
    pool: Count = 262_144
    """Latents with captions that teacher and distillation draw from."""


class StageSettings(Settings):
    """What all stages of training have in common."""

    minutes: Positive
    """Training time, minutes; `--budget-minutes` scales it. The cosine runs over it."""
    steps: Count | None = None
    """Most optimiser steps; the cosine then runs over whichever ends first. Absent: only the time counts."""
    batch_size: Count
    """Images or latents in a step."""
    learning_rate: Rate
    """Peak, of AdamW."""
    final_rate: Share = 0.02
    """Share of the peak at which the cosine ends."""
    warmup_steps: Count
    """Steps over which the rate rises linearly, at the start and after the optimiser's state was dropped."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of AdamW."""
    average: Share
    """Decay of the averaged weights per step; they are what a stage leaves."""


class VaeSettings(StageSettings):
    """The f8 autoencoder."""

    channels: tuple[Count, ...] = (32, 64, 80, 96)
    """Of each resolution, finest first; as many as halve the image to the latents, and one more."""
    object_weight: Annotated[float, Field(ge=1)] = 4.0
    """How much more an object's pixels count than the background's: objects are small."""
    squared: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the squared error beside the absolute one."""
    edges: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the error of the Laplacian."""
    low_frequencies: Annotated[float, Field(ge=0)] = 0.7
    """Weight of the error of 4 x 4 means."""
    latent_size: Annotated[float, Field(ge=0)] = 5e-6
    """Weight of the latents' mean square: holds their scale."""
    latent_noise: Share = 0.1
    """Most noise on the latents that the decoder learns from, in their standard deviations."""
    deviation: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Standard deviation of the exported posterior, in the latents' standard deviations: fixed, never trained."""


class TextSettings(Settings):
    """The two CLIP text encoders and their vocabulary."""

    vocabulary: Annotated[int, Field(ge=300, le=30_000)] = 2600
    """Most tokens of the byte-pair encoding."""
    max_tokens: Annotated[int, Field(ge=16, le=77)] = 32
    """Longest prompt, start and end included."""
    width: Count = 128
    """Of each encoder's states; the UNet sees both side by side."""
    layers: Annotated[int, Field(ge=2)] = 4
    """Of each encoder; SDXL reads the last but one."""
    head_width: Count = 32
    """Of an attention head."""


class UnetSettings(Settings):
    """The UNet of teacher and student."""

    channels: tuple[Count, ...] = (64, 128, 192)
    """Of each resolution, finest first."""
    head_width: Count = 32
    """Of an attention head."""
    guidance_width: Annotated[int, Field(ge=4)] = 256
    """Of the embedding through which the student takes its guidance scale."""


class TeacherSettings(StageSettings):
    """The diffusion model, text encoders included."""

    empty_prompts: Share = 0.1
    """Share of prompts left empty, for classifier-free guidance."""
    min_snr: Positive = 5.0
    """Signal-to-noise ratio above which a timestep weighs less (min-SNR weighting)."""


class LcmSettings(StageSettings):
    """Latent consistency distillation."""

    solver_steps: Count = 50
    """DDIM steps that the distillation knows."""
    guidance: tuple[Positive, Positive] = (1.0, 7.0)
    """Least and largest guidance scale distilled."""
    target: Share = 0.95
    """Decay per step of the target network."""
    huber: Positive = 1e-3
    """Scale of the pseudo-Huber loss."""


class Recipe(Settings):
    """The whole recipe."""

    name: Name
    """Of the model."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of weights, data and noise."""
    checkpoint_minutes: Positive = 2.0
    """Between two savings of a stage under way."""
    data: DataSettings = DataSettings()
    text: TextSettings = TextSettings()
    unet: UnetSettings = UnetSettings()
    vae: VaeSettings
    teacher: TeacherSettings
    lcm: LcmSettings

    @property
    def latent_px(self) -> int:
        """Side of the latents."""
        return self.data.image_px // 2 ** (len(self.vae.channels) - 1)

    @property
    def minutes(self) -> float:
        """Training time of all stages together."""
        return self.vae.minutes + self.teacher.minutes + self.lcm.minutes

    def within(self, budget_minutes: float) -> Recipe:
        """The recipe with all stages scaled so that together they train `budget_minutes`."""
        scale = budget_minutes / self.minutes
        stages = ("vae", "teacher", "lcm")
        tree = self.model_dump()
        return Recipe.model_validate(
            tree | {name: tree[name] | {"minutes": tree[name]["minutes"] * scale} for name in stages}
        )


def load_recipe(path: Path) -> Recipe:
    """Read a recipe's TOML file; raises ConfigError."""
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such recipe; expected a TOML file such as full.toml") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({error})") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Recipe)}") from error
