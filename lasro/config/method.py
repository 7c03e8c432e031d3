"""How the generator is updated: one kind of settings for each method, which `method.type` names.

A method's own module is in `lasro.methods`; docs/add-a-method.md shows what a new one needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from lasro.config.base import ConfigPath, ModelSource, Positive, Settings, Share
from lasro.num_steps import ONE_AND_TWO, NumSteps


class AscentSettings(Settings):
    """Methods that ascend a gradient: L = c L_reg - c1 S(z1) - c2 S(z2), S what the method makes of a reward."""

    one_step_weight: Annotated[float, Field(ge=0)] = 0.5
    """c1, where `train.steps` is [1, 2]."""
    two_step_weight: Annotated[float, Field(ge=0)] = 0.5
    """c2, where `train.steps` is [1, 2]."""
    step_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """c of each of `train.steps`, in their order; absent: those two of [1, 2], of other steps equal parts of 1."""
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


def weights_of(method: AscentSettings, steps: tuple[NumSteps, ...]) -> dict[NumSteps, float]:
    """c of each number of steps; raises ValueError where the settings do not say one for each."""
    both = {"one_step_weight": method.one_step_weight, "two_step_weight": method.two_step_weight}
    given = method.step_weights
    if given is None and steps == ONE_AND_TWO:
        return dict(zip(steps, both.values(), strict=True))
    fields = type(method).model_fields
    if changed := [name for name, value in both.items() if name in fields and value != fields[name].default]:
        raise ValueError(
            f"method.{changed[0]}: got {both[changed[0]]:g} with train.steps {list(steps)}"
            + ("" if given is None else f" and method.step_weights {list(given)}")
            + "; leave it out, and say method.step_weights, one for each of train.steps"
        )
    if given is None:
        return dict.fromkeys(steps, 1 / len(steps))
    if len(given) != len(steps):
        raise ValueError(
            f"method.step_weights: got {list(given)}, expected {len(steps)}, one for each of train.steps {list(steps)}"
        )
    return dict(zip(steps, given, strict=True))


def _type_of(table: Any) -> Any:
    return table.get("type", "lasro") if isinstance(table, Mapping) else getattr(table, "type", None)


MethodChoice = Annotated[
    Annotated[LasroSettings, Tag("lasro")] | Annotated[TrueGradientSettings, Tag("true-gradient")],
    Discriminator(_type_of),
]
"""The table `[method]` of a run; without `type` it is LaSRO."""
