"""How the generator is updated: one kind of settings for each method, which `method.type` names.

A method's own module is in `lasro.methods`; docs/add-a-method.md shows what a new one needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from lasro.config.base import ConfigPath, ModelSource, Positive, Settings, Share


class AscentSettings(Settings):
    """Methods that ascend a gradient: L = c L_reg - c1 S(z1) - c2 S(z2), S what the method makes of a reward."""

    one_step_weight: Annotated[float, Field(ge=0)] = 0.5
    """c1."""
    two_step_weight: Annotated[float, Field(ge=0)] = 0.5
    """c2."""
    regulariser: Literal["base", "lcm"] = "base"
    """L_reg: squared distance to the frozen base's predictions for the same inputs, or the LCM distillation loss."""
    regulariser_weight: Annotated[float, Field(ge=0)] = 1.0
    """c."""
    teacher: ModelSource | None = None
    """Diffusers folder or hub id whose UNet is the teacher of the LCM loss."""
    teacher_latents: ConfigPath | None = None
    """Safetensors file of clean `latents` [N, C, H, W], `prompts` in its metadata, for the LCM loss."""

    @model_validator(mode="after")
    def _lcm_needs_a_teacher(self) -> AscentSettings:
        if self.regulariser == "lcm" and (self.teacher is None or self.teacher_latents is None):
            raise ValueError('regulariser "lcm" needs both teacher and teacher_latents')
        return self


class LasroSettings(AscentSettings):
    """LaSRO: ascend the score of the surrogate R, L = c L_reg - c1 S[R(z1)] - c2 S[R(z2)]."""

    type: Literal["lasro"] = "lasro"
    """Which method these are the settings of."""
    score_clip: Positive = 3.0
    """S clips normalised scores to plus or minus this many standard deviations; not where score_scale = "maximum"."""
    score_momentum: Share = 0.9
    """Of the moving mean and width in S, kept for each number of steps: what a score still weighs an update later."""
    score_scale: Literal["deviation", "maximum"] = "deviation"
    """S divides by the moving standard deviation, or by the moving maximum of |R - mean|, and then clips to 1."""
    score_baseline: Literal["none", "base"] = "none"
    """S of R(z), or of R(z) - R(z_base): what the generator adds to the frozen base's latents for the same input."""


class TrueGradientSettings(AscentSettings):
    """The true gradient through the decoder, for rewards served from a @torch_reward: L with S(z) the reward itself."""

    type: Literal["true-gradient"]
    """Which method these are the settings of."""


def _type_of(table: Any) -> Any:
    return table.get("type", "lasro") if isinstance(table, Mapping) else getattr(table, "type", None)


MethodChoice = Annotated[
    Annotated[LasroSettings, Tag("lasro")] | Annotated[TrueGradientSettings, Tag("true-gradient")],
    Discriminator(_type_of),
]
"""The table `[method]` of a run; without `type` it is LaSRO."""
