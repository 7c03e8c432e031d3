"""How the generator is updated: one kind of settings for each method, which `method.type` names.

A method's own module is in `lasro.methods`; docs/add-a-method.md shows what a new one needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from lasro.config.base import ConfigPath, ModelSource, Positive, Settings, Share
from lasro.num_steps import ONE_AND_TWO, NumSteps


class RegulariserSettings(Settings):
    """What keeps the generator near what it was: c L_reg, beside the term that moves it."""

    regulariser: Literal["base", "lcm"] = "base"
    """L_reg: squared distance to the frozen base's predictions for the same inputs, or the LCM distillation loss."""
    regulariser_weight: Annotated[float, Field(ge=0)] = 1.0
    """c."""
    teacher: ModelSource | None = None
    """Diffusers folder or hub id whose UNet is the teacher of the LCM loss."""
    teacher_latents: ConfigPath | None = None
    """Safetensors file of clean `latents` [N, C, H, W], `prompts` in its metadata, for the LCM loss."""

    @model_validator(mode="after")
    def _lcm_needs_a_teacher(self) -> Self:
        if self.regulariser == "lcm" and (self.teacher is None or self.teacher_latents is None):
            raise ValueError('regulariser "lcm" needs both teacher and teacher_latents')
        return self


class StepWeights(Settings):
    """What samples of each number of steps count for in a method that ascends them."""

    one_step_weight: Annotated[float, Field(ge=0)] = 0.5
    """c1, where `train.steps` is [1, 2]."""
    two_step_weight: Annotated[float, Field(ge=0)] = 0.5
    """c2, where `train.steps` is [1, 2]."""
    step_weights: tuple[Annotated[float, Field(ge=0)], ...] | None = None
    """c of each of `train.steps`, in their order; absent: those two of [1, 2], of other steps equal parts of 1."""


class AscentSettings(RegulariserSettings, StepWeights):
    """Methods that ascend a gradient: L = c L_reg - c1 S(z1) - c2 S(z2), S what the method makes of a reward."""


class ScoreSettings(Settings):
    """How a surrogate's scores R are ascended: S[R] = clip((R - mean) / width)."""

    score_clip: Positive = 3.0
    """S clips normalised scores to plus or minus this many standard deviations; not where score_scale = "maximum"."""
    score_momentum: Share = 0.9
    """Of the moving mean and width in S, kept for each number of steps: what a score still weighs an update later."""
    score_scale: Literal["deviation", "maximum"] = "deviation"
    """S divides by the moving standard deviation, or by the moving maximum of |R - mean|, and then clips to 1."""
    score_baseline: Literal["none", "base"] = "none"
    """S of R(z), or of R(z) - R(z_base): what the generator adds to the frozen base's latents for the same input."""


class LasroSettings(AscentSettings, ScoreSettings):
    """LaSRO: ascend the score of the surrogate R, L = c L_reg - c1 S[R(z1)] - c2 S[R(z2)]."""

    type: Literal["lasro"] = "lasro"
    """Which method these are the settings of."""


class TrueGradientSettings(AscentSettings):
    """The true gradient through the decoder, for rewards served from a @torch_reward: L with S(z) the reward itself."""

    type: Literal["true-gradient"]
    """Which method these are the settings of."""


class RewardedSettings(RegulariserSettings):
    """Methods that learn from rewards themselves, those of a round or stored ones; no surrogate is trained for them."""

    regulariser_weight: Annotated[float, Field(ge=0)] = 0.0
    """c; beyond what `train.drift_budget` allows it grows, as for any method."""
    one_step_weight: ClassVar[float] = 0.5
    two_step_weight: ClassVar[float] = 0.5
    step_weights: ClassVar[None] = None


class PolicySettings(RewardedSettings):
    """Methods that learn from the likelihood of the noise that was added between steps."""

    compare_within: Literal["prompt", "noise"] = "prompt"
    """A sample is compared with those of its prompt, or of its first noise alone, which share z1: then
    `train.second_step_draws` must be 2 or more."""
    one_step_weight: ClassVar[float] = 0.0
    two_step_weight: ClassVar[float] = 1.0


class AdvantageSettings(PolicySettings):
    """Methods that follow an advantage: how much better a sample is than others, in their standard deviations."""

    prompt_samples: Annotated[int, Field(ge=2)] = 16
    """Samples of a prompt from which on mean and standard deviation are its own; of fewer, the whole round's."""
    advantage_clip: Positive = 10.0
    """Advantages are clipped at plus or minus this."""


class RlcmSettings(AdvantageSettings):
    """RLCM: PPO on the consistency trajectory, L = mean max(-A rho, -A clip(rho, 1 +- clip_range))."""

    type: Literal["rlcm"]
    """Which method these are the settings of."""
    clip_range: Positive = 1e-4
    """Of the ratio rho: that small because log-probabilities are means over the latent's numbers, not sums."""


class DdpoSettings(AdvantageSettings):
    """DDPO's score function estimator on the consistency trajectory, L = mean -A rho, without a clip."""

    type: Literal["ddpo"]
    """Which method these are the settings of."""


class RebelSettings(AdvantageSettings):
    """REBEL: of two samples, regress the difference of log rho / eta to that of A."""

    type: Literal["rebel"]
    """Which method these are the settings of."""
    eta: Positive = 1e-2
    """Log rho, a mean over the latent's numbers, for a difference in A of 1."""


class PairSettings(Settings):
    """Methods that learn which of two samples is better."""

    tie_margin: Share = 0.02
    """Totals closer than this share of their standard deviation within prompts are tied, and make no pair."""


class PsoOnlineSettings(PolicySettings, PairSettings):
    """PSO online: L = -log sigma(beta (log clip(rho_w) - log clip(rho_l))), rho against the base."""

    type: Literal["pso-online"]
    """Which method these are the settings of."""
    beta: Positive = 50.0
    """Sharpness; log rho is a mean over the latent's numbers."""
    clip_range: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Ratios are clipped to 1 plus or minus this; beyond it a sample gives no gradient."""


class StoredSettings(RewardedSettings):
    """Methods that learn from samples of any round so far."""

    stored_samples: Annotated[int, Field(ge=1, le=100_000)] = 300
    """Newest samples, or pairs of samples, that are kept to learn from."""


class OfflinePairSettings(StoredSettings, PairSettings):
    """Methods that learn from the best and the worst sample of each prompt."""


class PsoOfflineSettings(OfflinePairSettings):
    """PSO offline: DPO on the sampler's own transitions, each sample diffused to the step's timestep."""

    type: Literal["pso-offline"]
    """Which method these are the settings of."""
    beta: Positive = 50.0
    """Sharpness; log-probabilities are means over the latent's numbers."""


class DiffusionDpoSettings(OfflinePairSettings):
    """Diffusion-DPO at the timesteps that the model was distilled at, by its loss of the noise."""

    type: Literal["diffusion-dpo"]
    """Which method these are the settings of."""
    beta: Positive = 5000.0
    """Sharpness, on losses that are means over the latent's numbers."""


class GorsSettings(StoredSettings):
    """GORS-LCM: consistency distillation on the best samples, weighted by their reward."""

    type: Literal["gors"]
    """Which method these are the settings of. With a `teacher` its solver makes the target, else the noise that was
    added does."""
    threshold: float | None = None
    """Total from which on a sample is learned from, in units of the total; absent: the best of each prompt is."""
    sample_weight: Literal["reward", "none"] = "reward"
    """The loss of a sample is weighted by its total, at least 0, or all alike."""


class RewardGuidedLcdSettings(RegulariserSettings, ScoreSettings):
    """Reward-guided LCD: c L_lcm - S[R(f(x_t, t))], at random timesteps of stored latents."""

    type: Literal["reward-guided-lcd"]
    """Which method these are the settings of. It needs `teacher` and `teacher_latents`."""
    regulariser: Literal["base", "lcm"] = "lcm"
    """The LCM distillation loss, which this method is about; `base` is refused."""
    one_step_weight: ClassVar[float] = 0.5
    two_step_weight: ClassVar[float] = 0.5
    step_weights: ClassVar[None] = None

    @model_validator(mode="after")
    def _distils(self) -> Self:
        if self.regulariser != "lcm":
            raise ValueError('regulariser: got base, expected "lcm": reward-guided-lcd goes on distilling')
        return self


class NoiseTiltingSettings(StepWeights, ScoreSettings):
    """Noise tilting: the frozen base draws from x_tau0 + D, c mean D^2 - c1 S[R(z1)] - c2 S[R(z2)]."""

    type: Literal["noise-tilting"]
    """Which method these are the settings of."""
    regulariser: Literal["noise"] = "noise"
    """The mean square of D, what the adapter adds to the first noise; nothing else."""
    regulariser_weight: Annotated[float, Field(ge=0)] = 1.0
    """c."""


def weights_of(
    method: StepWeights | RewardedSettings | RewardGuidedLcdSettings, steps: tuple[NumSteps, ...]
) -> dict[NumSteps, float]:
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
    Annotated[LasroSettings, Tag("lasro")]
    | Annotated[TrueGradientSettings, Tag("true-gradient")]
    | Annotated[RlcmSettings, Tag("rlcm")]
    | Annotated[DdpoSettings, Tag("ddpo")]
    | Annotated[RebelSettings, Tag("rebel")]
    | Annotated[PsoOnlineSettings, Tag("pso-online")]
    | Annotated[PsoOfflineSettings, Tag("pso-offline")]
    | Annotated[DiffusionDpoSettings, Tag("diffusion-dpo")]
    | Annotated[GorsSettings, Tag("gors")]
    | Annotated[RewardGuidedLcdSettings, Tag("reward-guided-lcd")]
    | Annotated[NoiseTiltingSettings, Tag("noise-tilting")],
    Discriminator(_type_of),
]
"""The table `[method]` of a run; without `type` it is LaSRO."""
