"""A whole run, as its TOML file says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, model_validator

from lasro.config.base import Autocast, Positive, Settings, move_key
from lasro.config.method import LasroSettings, MethodChoice, weights_of
from lasro.config.model import LoraSettings, ModelSettings
from lasro.config.prompts import PromptSettings
from lasro.config.rewards import ObjectiveSettings, RewardSettings
from lasro.config.surrogate import SurrogateRun, SurrogateSettings
from lasro.config.tracking import TrackingSettings
from lasro.config.training import PretrainSettings, TrainSettings
from lasro.functional.reward_totals import RewardObjective
from lasro.num_steps import ONE_AND_TWO, NumSteps
from lasro.wire import Name

MOVED_TO_METHOD = {
    "one_step_weight",
    "two_step_weight",
    "regulariser",
    "regulariser_weight",
    "score_clip",
    "score_momentum",
    "teacher",
    "teacher_latents",
}


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
    max_drift: Positive | None = None
    """Trouble: latents this far from the base's of the same noise. 1: as another seed; 0.71: the same for any noise.
    Absent: 0.65, and no limit where `train.drift_budget` holds the generator."""
    max_roll_backs: Annotated[int, Field(ge=0)] = 3
    """Where on_trouble = "roll_back"; the run ends at the next trouble after these."""
    max_unranked_rounds: Annotated[int, Field(ge=1)] = 8
    """Rounds in a row without a ranked pair, in stage 1 or 2, after which the run ends with status 1: its rewards
    failed or tied. So it does after fewer, where these are all it has had. The generator is not updated in such a
    round. A resumed run counts from 0."""


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
    """Of all that comes before the evaluation at the end, in all resumes together; absent: no limit. The first five
    rounds show how many fit, ten more show it again, and so on; `train.decay_steps` shrinks with them."""


class ServiceSettings(Settings):
    """Where the services are; absent: where LASRO_REWARD_API_URL and LASRO_SURROGATE_TRAINER_URL say, and where these
    are not set either, a local stack is started for the run."""

    reward_api: str | None = None
    """URL."""
    surrogate_trainer: str | None = None
    """URL."""
    timeout_s: Positive = 300.0
    """For one call, waiting for scores and training included."""
    reward_wait_s: Annotated[float, Field(ge=0)] = 180.0
    """How long rewards that do not answer are waited for: at the start, after an evaluation in which one scored
    nothing, and after a round in which no sample got a total. Then the run ends with status 1 and its own words."""
    in_process_trainer: bool = False
    """Run the local stack's surrogate trainer as a thread of the client, over the frozen model that the client has
    loaded, in place of a process that loads it once more."""

    @model_validator(mode="after")
    def _both_or_none(self) -> ServiceSettings:
        if (self.reward_api is None) != (self.surrogate_trainer is None):
            raise ValueError("give both reward_api and surrogate_trainer, or neither to start a local stack")
        if self.in_process_trainer and self.surrogate_trainer is not None:
            raise ValueError("in_process_trainer: got true with the URL of a surrogate_trainer; leave one of them out")
        return self


class RunModelSettings(ModelSettings):
    """The generator of a run: in mixed precision where the device computes in it, which is about twice as fast."""

    autocast: Autocast = "auto"
    """Dtype of the arithmetic in sampling and training; `auto` takes bfloat16 where the device computes in it."""


class RunSurrogateSettings(SurrogateSettings):
    """The surrogate of a run, in mixed precision likewise."""

    autocast: Autocast = "auto"
    """Dtype of the arithmetic in training; scores and gradients served follow `serve_autocast`."""
    serve_autocast: Autocast = "auto"
    """Dtype of the arithmetic behind `score` and `gradient`."""


class RunSettings(Settings):
    """A whole run, as its TOML file says it."""

    name: Name
    """Name of the run at the services and of its folder."""
    seed: int = 0
    """Of prompts, noises, batches and initial weights."""
    model: RunModelSettings = RunModelSettings()
    prompts: PromptSettings
    rewards: Annotated[tuple[RewardSettings, ...], Field(min_length=1)]
    surrogate: RunSurrogateSettings = RunSurrogateSettings()
    pretrain: PretrainSettings = PretrainSettings()
    lora: LoraSettings = LoraSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    method: MethodChoice = LasroSettings()
    train: TrainSettings = TrainSettings()
    health: HealthSettings = HealthSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    budget: BudgetSettings = BudgetSettings()
    services: ServiceSettings = ServiceSettings()
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="before")
    @classmethod
    def _split_objective(cls, data: Any, info: ValidationInfo) -> Any:
        """Read `[objective]` as it was before there were methods; its keys but `combine` are those of `[method]`."""
        objective = data.get("objective") if isinstance(data, Mapping) else None
        if not isinstance(objective, Mapping) or objective.keys().isdisjoint(MOVED_TO_METHOD):
            return data
        tables = {"objective": dict(objective), "method": dict(data.get("method", {}))}
        for key in MOVED_TO_METHOD & objective.keys():
            move_key(tables["objective"], key, tables["method"], key, info, "objective.", "method.")
        return {**data, **tables}

    @model_validator(mode="after")
    def _timesteps_of_the_model(self) -> RunSettings:
        """Who loads `model` samples at the run's timesteps, without having to know of them."""
        given, timesteps = self.model.timesteps, self.train.timesteps
        if given not in (None, timesteps):
            raise ValueError(f"model.timesteps: got {list(given)}; say it as train.timesteps, which a run goes by")
        model = self.model.model_copy(update={"timesteps": timesteps})
        object.__setattr__(self, "model", model)  # frozen for all others
        return self

    @model_validator(mode="after")
    def _steps_of_the_run(self) -> RunSettings:
        """Both stages sample in the same numbers of steps."""
        steps, given = self.train.steps, self.pretrain.steps
        if "steps" in self.pretrain.model_fields_set and given != steps:
            raise ValueError(f"pretrain.steps: got {list(given)}; say it as train.steps, which both stages go by")
        if self.pretrain.probe_steps != "both" and steps != ONE_AND_TWO:
            raise ValueError(
                f'pretrain.probe_steps: got "{self.pretrain.probe_steps}" with train.steps {list(steps)}, expected '
                '"both": the second step is moved by itself in runs of [1, 2] alone'
            )
        pretrain = self.pretrain.model_copy(update={"steps": steps})
        try:
            pretrain.check_group()
        except ValueError as error:
            raise ValueError(f"pretrain.{error}") from error
        object.__setattr__(self, "pretrain", pretrain)  # frozen for all others
        self.step_weights  # noqa: B018 - raises where they do not fit
        return self

    @model_validator(mode="after")
    def _one_at_a_time_in_one_process(self) -> RunSettings:
        if self.services.in_process_trainer and self.train.overlap:
            raise ValueError(
                "services.in_process_trainer: got true with train.overlap, whose trainer computes beside the client in "
                "a process of its own; leave one of them out"
            )
        if self.services.in_process_trainer and self.surrogate.backbone is not None:
            raise ValueError(
                "services.in_process_trainer: got true with surrogate.backbone, so that there is no base to share; "
                "leave one of them out"
            )
        return self

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
    def step_weights(self) -> dict[NumSteps, float]:
        """Weight of each of `train.steps` in the method's loss."""
        return weights_of(self.method, self.train.steps)

    @property
    def reward_objective(self) -> RewardObjective:
        """How the rewards make one total."""
        return RewardObjective(
            weights=self.weights,
            combine=self.objective.combine,
            floors={reward.name: reward.floor for reward in self.rewards if reward.floor is not None},
            normalised=[reward.name for reward in self.rewards if reward.normalise],
        )

    @property
    def surrogate_run(self) -> SurrogateRun:
        """What the surrogate trainer needs to know of the run."""
        objective = self.reward_objective
        return SurrogateRun(
            model=self.model.model_copy(update={"tiny_vae": None, "shard": False}),  # it decodes nothing, and is alone
            surrogate=self.surrogate,
            weights=dict(objective.weights),
            combine=objective.combine,
            floors=dict(objective.floors),
            normalised=tuple(objective.normalised),
        )
