"""Settings of a run: TOML checked by frozen pydantic models, unknown keys refused. Imports no torch.

config = load_config(Path("configs/demo.toml"), ["train.rounds=10"])
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lasro.errors import ConfigError
from lasro.functional.reward_totals import Combine, RewardObjective
from lasro.validation import explain
from lasro.wire import Finite, Name

Dtype = Literal["float32", "bfloat16", "float16"]
Autocast = Literal["none", "auto", "bfloat16", "float16"]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=1)]


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelSettings(Settings):
    """The two-step generator."""

    path: str = "bundled"
    """`bundled`, a diffusers folder of a StableDiffusionXLPipeline, or a hub id."""
    revision: str | None = None
    """Commit of a hub id; absent: the newest."""
    unet: str | None = None
    """Folder or hub id of a distilled UNet that replaces the pipeline's own, as LCM-SSD-1B comes; absent: none."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to run; `auto` takes an accelerator when there is one."""
    dtype: Dtype = "float32"
    """Of the weights of frozen parts; what is trained stays in float32."""
    autocast: Autocast = "none"
    """Dtype of the arithmetic in sampling and training; `auto` takes bfloat16 where the device computes in it."""
    guidance: Annotated[float, Field(ge=0, le=50)] = 4.0
    """Guidance scale w, embedded in the UNet's time embedding."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""


class PromptSettings(Settings):
    """Prompt files: one a line, or JSONL with `prompt` and `metadata`. Paths are relative to the TOML file."""

    train: Path
    """Prompts trained on."""
    held_out: Path
    """Prompts evaluated on, never trained on."""
    drift: Path | None = None
    """Prompts that should keep looking as the base draws them; absent: drift is not measured."""


class RewardSettings(Settings):
    """One reward of the objective, or a guard of it."""

    name: Name
    """As registered at the reward API."""
    weight: Finite = 1.0
    """Factor in a sum or minimum, exponent in a product; 0 scores and logs it, and leaves it out of the total."""
    floor: Finite | None = None
    """In units of the reward: a sample below it is vetoed, and ranks below all that are not. Absent: no guard."""
    normalise: bool = False
    """Take it in deviations from its mean, both of the groups in the replay, so that unit and zero do not matter."""
    serve: str | None = None
    """`module:function` of an `@reward`; served and registered by the local stack. Absent: already registered."""


class SurrogateSettings(Settings):
    """The surrogate R_psi(z, c) and how it is trained."""

    trunk: Literal["full", "adapter"] = "full"
    """Train conv_in, down and mid blocks themselves, or LoRA adapters on them."""
    adapter_rank: Annotated[int, Field(ge=1, le=512)] = 32
    """LoRA rank where trunk = "adapter"."""
    head_channels: Annotated[int, Field(ge=8, le=4096)] = 128
    """Width of the CNN head."""
    max_timestep: Annotated[int, Field(ge=1, le=1000)] = 200
    """Inputs are diffused to a random timestep below this one."""
    rank_within_stage: bool = False
    """Compare one-step samples only with one-step samples; off: both stages of a prompt together."""
    tie_margin: Annotated[float, Field(ge=0)] = 0.02
    """Pairs whose totals differ by no more than this are dropped; in deviations where rewards are normalised."""
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
    buffer_groups: Annotated[int, Field(ge=1, le=1_000_000)] = 300
    """Newest groups kept in the replay buffer."""
    recent_groups: Annotated[int, Field(ge=1, le=1_000_000)] = 30
    """Half of each batch is drawn from this many newest groups, half from all."""
    max_policy_lag: Annotated[int, Field(ge=0)] = 10
    """Groups of a generator more updates than this behind the newest are replayed, but do not count as fresh."""
    held_out_share: Share = 0.05
    """Share of groups kept out of training to measure pair accuracy."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the trainer runs it."""
    autocast: Autocast = "none"
    """Dtype of the arithmetic in training; scores and gradients served follow `serve_autocast`."""
    serve_autocast: Autocast = "none"
    """Dtype of the arithmetic behind `score` and `gradient`."""
    seed: int = 0
    """Of batches, timesteps and noise."""


class SamplingSettings(Settings):
    """One round of collecting."""

    prompts_per_round: Annotated[int, Field(ge=1, le=4096)] = 2
    """Groups made per round."""
    seeds_per_prompt: Annotated[int, Field(ge=1, le=256)] = 6
    """K: noises per prompt; each gives a one-step and a two-step sample."""
    reference_seeds: Annotated[int, Field(ge=1, le=256)] | None = None
    """Noises per prompt that the base draws from too once there is another (stage 1: a scout); absent: all K."""
    keep_samples: bool = False
    """Keep latents and rewards of all samples in the run's folder, for `pretrain.initial_samples` of a later run."""

    @property
    def num_reference_seeds(self) -> int:
        """`reference_seeds`, at most all."""
        return min(self.reference_seeds or self.seeds_per_prompt, self.seeds_per_prompt)


class PretrainSettings(SamplingSettings):
    """Stage 1: the surrogate learns to rank samples of the base model."""

    rounds: Annotated[int, Field(ge=0)] = 100
    """Rounds of collecting and training; 0: learn from `initial_samples` alone."""
    initial_surrogate: str | None = None
    """`bundled` or a safetensors file written by an earlier run; absent: an untrained one."""
    initial_samples: tuple[Path, ...] = ()
    """Folders of runs that had `keep_samples`, stage 1 or 2: all that they paid for starts the replay."""
    prompts_per_round: Annotated[int, Field(ge=1, le=4096)] = 8
    """Groups made per round."""
    steps_per_round: Annotated[int, Field(ge=0)] = 4
    """Surrogate steps after each round."""
    probe_after: Annotated[int, Field(ge=0)] = 50
    """First rounds, with samples of the base alone."""
    probe_rounds: Annotated[int, Field(ge=0)] = 50
    """Rounds that a scout climbs the surrogate, its samples scored beside the base's, before the next one; 0: none."""
    final_steps: Annotated[int, Field(ge=0)] = 0
    """Surrogate steps once all rounds are in."""

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> PretrainSettings:
        if self.rounds == 0 and not self.initial_samples:
            raise ValueError("rounds: got 0 without initial_samples, expected at least 1 or runs that kept samples")
        return self


class LoraSettings(Settings):
    """What of the generator's UNet is trained."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """LoRA rank."""
    alpha: Positive = 16.0
    """LoRA alpha; the update is scaled by alpha / rank."""
    targets: tuple[str, ...] = (
        "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
        "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
    )  # fmt: skip
    """Endings of module names that get an adapter."""


class ObjectiveSettings(Settings):
    """L = regulariser_weight * L_reg - one_step_weight * S[R(z1)] - two_step_weight * S[R(z2)].

    R, the surrogate, learns how the total of the rewards ranks.
    """

    combine: Combine = "sum"
    """What makes one total of the rewards: their weighted sum, product of powers, or smallest weighted one."""
    one_step_weight: Annotated[float, Field(ge=0)] = 0.5
    """c1."""
    two_step_weight: Annotated[float, Field(ge=0)] = 0.5
    """c2."""
    regulariser: Literal["base", "lcm"] = "base"
    """L_reg: squared distance to the frozen base's predictions for the same inputs, or the LCM distillation loss."""
    regulariser_weight: Annotated[float, Field(ge=0)] = 1.0
    """c."""
    score_clip: Positive = 3.0
    """S clips normalised scores to plus or minus this many deviations."""
    score_momentum: Share = 0.9
    """Of the moving mean and deviation in S, one pair per stage."""
    teacher: str | None = None
    """Diffusers folder or hub id whose UNet is the teacher of the LCM loss."""
    teacher_latents: Path | None = None
    """Safetensors file of clean `latents` [N, C, H, W], `prompts` in its metadata, for the LCM loss."""

    @model_validator(mode="after")
    def _lcm_needs_a_teacher(self) -> ObjectiveSettings:
        if self.regulariser == "lcm" and (self.teacher is None or self.teacher_latents is None):
            raise ValueError('regulariser "lcm" needs both teacher and teacher_latents')
        return self


class TrainSettings(SamplingSettings):
    """Stage 2: alternate between the generator and the surrogate."""

    rounds: Annotated[int, Field(ge=1)] = 150
    """Rounds of collecting, adapting and updating."""
    mode: Literal["gradient", "weights"] = "weights"
    """Ask the trainer for gradients, or fetch its weights and differentiate here. Both give the same update."""
    generator_steps: Annotated[int, Field(ge=1, le=100)] = 1
    """Generator updates per round."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 16
    """Prompts per generator update."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """How many of them go through the networks together; absent: all. The same update in less memory, a pass more."""
    two_step_every: Annotated[int, Field(ge=1)] = 1
    """Prompts for each that takes the second step too, whose gradient is several times smaller; 1: all do."""
    learning_rate: Rate = 5e-4
    """Of the generator's AdamW."""
    warmup_steps: Annotated[int, Field(ge=1)] = 10
    """Generator updates over which the learning rate rises linearly."""
    decay_steps: Annotated[int, Field(ge=1)] | None = None
    """Generator updates over which the learning rate falls to a twentieth, by a cosine; absent: it stays."""
    clip_norm: Positive = 1.0
    """Largest gradient norm."""
    ema: Share = 0.95
    """Decay of the averaged weights that are evaluated and exported."""
    surrogate_steps: Annotated[int, Field(ge=0)] = 4
    """Surrogate steps per round."""
    overlap: bool = False
    """While the surrogate adapts to a round, update the generator by what it was before, and draw the next round."""
    warmup_rounds: Annotated[int, Field(ge=0)] = 0
    """First rounds that fill the replay and adapt the surrogate without touching the generator."""
    initial_surrogate: str | None = None
    """`bundled` or a safetensors file written by `lasro pretrain`; absent: an untrained one."""
    initial_base_rewards: Path | None = None
    """The labels.jsonl of the same `lasro pretrain`: its groups start the replay; absent: it is empty."""
    carried_groups: Annotated[int, Field(ge=1, le=100_000)] = 120
    """Newest groups of `initial_base_rewards` that are drawn again and carried over."""
    carried_seeds: Annotated[int, Field(ge=1, le=256)] | None = None
    """First seeds of each of these groups; absent: all of them."""
    checkpoint_rounds: Annotated[int, Field(ge=1)] = 10
    """Rounds between checkpoints."""
    report_rounds: Annotated[int, Field(ge=1)] = 10
    """Rounds between rewrites of report.html."""


class HealthSettings(Settings):
    """When a fine-tuning run is in trouble, and what is done then. Figures are means over `window_rounds`."""

    on_trouble: Literal["stop", "roll_back", "ignore"] = "stop"
    """End with the best averaged weights, go on from the best ones, or only watch."""
    window_rounds: Annotated[int, Field(ge=2)] = 20
    """Rounds averaged: one round's gain is mostly noise."""
    decline_errors: Positive = 5.0
    """Trouble: the gain over the base is below half of its best, and below its best by this many standard errors."""
    max_reward_gap: Annotated[float, Field(ge=0, le=2)] = 0.8
    """Trouble: 1 - rank correlation of score and reward in fresh groups above this, after a window below it."""
    max_drift: Positive = 0.65
    """Trouble: latents this far from the base's of the same noise. 1: as another seed; 0.71: the same for any noise."""
    max_roll_backs: Annotated[int, Field(ge=0)] = 3
    """Where on_trouble = "roll_back"; the run ends at the next trouble after these."""


class EvaluationSettings(Settings):
    """Before and after, on the held-out prompts, with paired seeds."""

    prompts: Annotated[int, Field(ge=1)] = 128
    """How many held-out prompts."""
    seed: int = 10_000
    """Prompt i is drawn with seed + i."""
    rewards: tuple[Name, ...] = ()
    """Rewards also reported, not trained on."""
    drift_prompts: Annotated[int, Field(ge=0)] = 32
    """How many drift prompts."""


class BudgetSettings(Settings):
    """What the run may spend."""

    max_reward_calls: Annotated[int, Field(ge=0)] | None = None
    """Images scored by a reward, cache hits not counted; absent: no limit."""
    max_minutes: Positive | None = None
    """Of all that comes before the evaluation at the end, in all resumes together; absent: no limit. How many rounds
    fit is told from the first five, again after ten more, and so on; `train.decay_steps` shrinks with them."""


class ServiceSettings(Settings):
    """Where the services are; absent: where LASRO_REWARD_API_URL and LASRO_SURROGATE_TRAINER_URL say, and where these
    are not set either, a local stack is started for the run."""

    reward_api: str | None = None
    """URL."""
    surrogate_trainer: str | None = None
    """URL."""
    timeout_s: Positive = 300.0
    """For one call, waiting for scores and training included."""

    @model_validator(mode="after")
    def _both_or_none(self) -> ServiceSettings:
        if (self.reward_api is None) != (self.surrogate_trainer is None):
            raise ValueError("give both reward_api and surrogate_trainer, or neither to start a local stack")
        return self


class RunSettings(Settings):
    """A whole run, as its TOML file says it."""

    name: Name
    """Name of the run at the services and of its folder."""
    seed: int = 0
    """Of prompts, noises, batches and initial weights."""
    model: ModelSettings = ModelSettings()
    prompts: PromptSettings
    rewards: Annotated[tuple[RewardSettings, ...], Field(min_length=1)]
    surrogate: SurrogateSettings = SurrogateSettings()
    pretrain: PretrainSettings = PretrainSettings()
    lora: LoraSettings = LoraSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    train: TrainSettings = TrainSettings()
    health: HealthSettings = HealthSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    budget: BudgetSettings = BudgetSettings()
    services: ServiceSettings = ServiceSettings()

    @model_validator(mode="after")
    def _distinct_rewards(self) -> RunSettings:
        names = [reward.name for reward in self.rewards]
        if len(set(names)) != len(names):
            raise ValueError(f"rewards: got {names}, expected each name once")
        return self

    @model_validator(mode="after")
    def _rewards_combine(self) -> RunSettings:
        self.reward_objective  # noqa: B018 - raises where they do not
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each reward in the objective."""
        return {reward.name: reward.weight for reward in self.rewards}

    @property
    def reward_objective(self) -> RewardObjective:
        """How the rewards make one total."""
        return RewardObjective(
            weights=self.weights,
            combine=self.objective.combine,
            floors={reward.name: reward.floor for reward in self.rewards if reward.floor is not None},
            normalised=[reward.name for reward in self.rewards if reward.normalise],
        )


class SurrogateRun(Settings):
    """Body of `PUT /v1/runs/{run}`: all that the trainer needs to know of a run."""

    model: ModelSettings = ModelSettings()
    surrogate: SurrogateSettings = SurrogateSettings()
    weights: dict[Name, Finite] = Field(min_length=1)
    """Weight of each reward in the total that is ranked."""
    combine: Combine = "sum"
    """What makes the total: the weighted sum, product of powers, or smallest weighted reward."""
    floors: dict[Name, Finite] = Field(default_factory=dict)
    """Rewards below which a sample is vetoed, and ranks below all that are not."""
    normalised: tuple[Name, ...] = ()
    """Rewards taken in deviations from their mean, both of the groups in the replay."""

    @model_validator(mode="after")
    def _rewards_combine(self) -> SurrogateRun:
        self.reward_objective  # noqa: B018 - raises where they do not
        return self

    @property
    def reward_objective(self) -> RewardObjective:
        """How the rewards make one total."""
        return RewardObjective(self.weights, self.combine, self.floors, self.normalised)


def _assign(tree: dict[str, Any], setting: str) -> None:
    """Apply one `a.b=value`; the value is TOML, or a plain string where it is not."""
    path, equals, text = setting.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"--set {setting}: expected KEY=VALUE, for example train.rounds=20")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, leaf = path.strip().split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {setting}: {parent} is not a table")
    tree[leaf] = value


def load_config(path: Path, settings: Sequence[str] = ()) -> RunSettings:
    """Read a run's TOML file and apply `--set` overrides; raises ConfigError.

    Relative paths inside it are taken from the folder of the file.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({error})") from error
    for setting in settings:
        _assign(tree, setting)
    try:
        config = RunSettings.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, RunSettings)}") from error
    return _with_absolute_paths(config, path.resolve().parent)


def _with_absolute_paths(config: RunSettings, folder: Path) -> RunSettings:
    def absolute(path: Path | None) -> Path | None:
        return None if path is None else (folder / path).resolve()

    prompts = config.prompts.model_copy(
        update={name: absolute(getattr(config.prompts, name)) for name in PromptSettings.model_fields}
    )
    objective = config.objective.model_copy(update={"teacher_latents": absolute(config.objective.teacher_latents)})
    updates: dict[str, Any] = {"prompts": prompts, "objective": objective}
    model = config.model.path
    if model.startswith((".", "~")):
        updates["model"] = config.model.model_copy(update={"path": str((folder / Path(model).expanduser()).resolve())})

    def weights(initial: str | None) -> str | None:
        return initial if initial in (None, "bundled") else str((folder / Path(initial).expanduser()).resolve())

    pretrain, train = config.pretrain, config.train
    updates["pretrain"] = pretrain.model_copy(
        update={
            "initial_surrogate": weights(pretrain.initial_surrogate),
            "initial_samples": tuple((folder / run).resolve() for run in pretrain.initial_samples),
        }
    )
    updates["train"] = train.model_copy(
        update={
            "initial_surrogate": weights(train.initial_surrogate),
            "initial_base_rewards": absolute(train.initial_base_rewards),
        }
    )
    return config.model_copy(update=updates)


def differing_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the settings in which two dumped configurations differ."""
    keys = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            keys += differing_keys(a, b, f"{prefix}{key}.")
        elif json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True):
            keys.append(f"{prefix}{key}")
    return keys
