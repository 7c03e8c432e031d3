"""The two stages of a run: what they sample, how long they last, and how the generator is updated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from lasro.config.base import ConfigPath, Positive, Rate, Settings, Share, Steps, WeightsFile, falling_for
from lasro.num_steps import MOST_STEPS, ONE_AND_TWO, NumSteps

ROUNDS, MOST_ROUNDS_FROM_NOTHING = 150, 300
SURROGATE_STEPS = 4
RANKING_PROMPTS = 2
"""Times `prompts_per_round`, of a round of ranking: nothing else is done in it."""
PERTURBED_PART = 4
"""One noise in so many of `reference_seeds` makes perturbed samples too."""
DRIFT_BUDGET = 0.4
MOST_DRIFT = 2.0

LEAST_SAMPLES, MAX_SAMPLES = 2, 1024
"""Of a group, as the reward API takes them."""


class SamplingSettings(Settings):
    """One round of collecting."""

    renamed: ClassVar[Mapping[str, str]] = {"beside_seeds": "reference_seeds"}

    steps: Steps = ONE_AND_TWO
    """Numbers of the sampler's steps, 1 to 8, in each of which samples are drawn: `[1, 2]`, `[4]`, `[1, 4]`, ..."""
    prompts_per_round: Annotated[int, Field(ge=1, le=4096)] = 3
    """Groups made per round."""
    seeds_per_prompt: Annotated[int, Field(ge=1, le=256)] = 4
    """K: noises per prompt; each gives a sample in each number of steps, one and two by default."""
    second_step_draws: Annotated[int, Field(ge=1, le=4)] = 1
    """Second (and later) noises for each of them: that many samples of several steps share what the first step made."""
    reference_seeds: Annotated[int, Field(ge=1, le=256)] | None = None
    """Noises per prompt that reference samples are drawn from too: the base's in stage 2, a probe generator's in
    stage 1; absent: all K."""
    keep_samples: bool = False
    """Keep latents and rewards of all samples in the run's folder, for `pretrain.initial_samples` of a later run."""

    @property
    def num_reference_seeds(self) -> int:
        """`reference_seeds`, at most all."""
        return min(self.reference_seeds or self.seeds_per_prompt, self.seeds_per_prompt)

    @property
    def samples_per_seed(self) -> dict[NumSteps, int]:
        """Of one policy, by number of steps."""
        return {n: 1 if n == 1 else self.second_step_draws for n in self.steps}

    @model_validator(mode="after")
    def _group_can_be_posted(self) -> Self:
        self.check_group()
        return self

    def check_group(self) -> None:
        """Raise ValueError where a group would have too many samples to be posted, or too few to be ranked."""
        per_seed = sum(self.samples_per_seed.values())
        count = (self.seeds_per_prompt + self.num_reference_seeds) * per_seed
        if count > MAX_SAMPLES:
            raise ValueError(
                f"seeds_per_prompt: got {count} samples a group, expected at most {MAX_SAMPLES}; "
                "lower it, reference_seeds or second_step_draws"
            )
        if self.seeds_per_prompt * per_seed < LEAST_SAMPLES:
            raise ValueError(
                f"seeds_per_prompt: got {self.seeds_per_prompt} with steps {list(self.steps)}, expected at least "
                f"{LEAST_SAMPLES}: the samples of a prompt are ranked against one another"
            )
        if self.second_step_draws > 1 and max(self.steps) == 1:
            raise ValueError(
                f"second_step_draws: got {self.second_step_draws} with steps [1], expected 1: there is no second step"
            )


class PretrainSettings(SamplingSettings):
    """Stage 1: the surrogate learns to rank samples of the base model."""

    renamed: ClassVar[Mapping[str, str]] = {
        **SamplingSettings.renamed,
        "scout_after": "probe_after",
        "scout_rounds": "probe_rounds",
    }

    steps: Annotated[Steps, Field(exclude=True)] = ONE_AND_TWO
    """Those of the run, which says them as `train.steps`: so they are in no dump."""
    rounds: Annotated[int, Field(ge=0)] = 100
    """Rounds of collecting and training; 0: learn from `initial_samples` alone."""
    initial_surrogate: WeightsFile | None = None
    """`bundled` or a safetensors file written by an earlier run; absent: an untrained one."""
    initial_samples: tuple[ConfigPath, ...] = ()
    """Folders of runs that had `keep_samples`, stage 1 or 2: all that they paid for starts the replay."""
    prompts_per_round: Annotated[int, Field(ge=1, le=4096)] = 8
    """Groups made per round."""
    seeds_per_prompt: Annotated[int, Field(ge=1, le=256)] = 6
    """K: noises per prompt; each gives a sample in each of `train.steps`."""
    steps_per_round: Annotated[int, Field(ge=0)] = 4
    """Surrogate steps after each round."""
    probe_after: Annotated[int, Field(ge=0)] = 50
    """First rounds, with samples of the base alone."""
    probe_rounds: Annotated[int, Field(ge=0)] = 50
    """Rounds that a probe generator ascends the surrogate, its samples scored as the base's are, before a fresh one
    replaces it; 0: none."""
    probe_steps: Literal["both", "second", "alternate"] = "both"
    """Which steps a probe generator moves: both, the second alone (its first is the base's), or by turns, one probe
    generator both and the next the second."""
    final_steps: Annotated[int, Field(ge=0)] = 0
    """Surrogate steps once all rounds are in."""

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> PretrainSettings:
        if self.rounds == 0 and not self.initial_samples:
            raise ValueError("rounds: got 0 without initial_samples, expected at least 1 or runs that kept samples")
        return self


class TrainSettings(SamplingSettings):
    """Stage 2: alternate between the generator and the surrogate."""

    renamed: ClassVar[Mapping[str, str]] = {
        **SamplingSettings.renamed,
        "initial_labels": "initial_base_rewards",
    }

    steps: Steps = ONE_AND_TWO
    """Numbers of the sampler's steps, 1 to 8, whose samples are scored, ranked, trained and evaluated, in stage 1 too:
    `[4]`, `[8]`, `[1, 4]`, ..."""
    gradient_steps: Annotated[int, Field(ge=1, le=MOST_STEPS)] = 1
    """Last steps of each through which a gradient flows, one into the next; what is before them is a constant. 1: each
    step is trained by itself. More hold the activations of as many steps."""
    rounds: Annotated[int, Field(ge=1)] | None = None
    """Rounds of collecting, adapting and updating. Absent: 150; of a run that begins from nothing as many as it takes,
    by how long the surrogate took to learn, and at most 300."""
    drift_budget: Annotated[float, Field(gt=0, le=MOST_DRIFT)] | None = DRIFT_BUDGET
    """How far the exported model may move from the base: its images' distance from the base's of the same noise, in
    distances between the base's images of different prompts (docs/train-your-model.md has pictures). The weight of
    the regulariser follows so that the run arrives there. "none": no limit, as in earlier releases."""
    timesteps: tuple[int, ...] | None = None
    """Of the two steps, as `[999, 299]`, wherever base or adapted model is sampled, in stage 1 too; one-step samples
    take the first. With other `steps` as many as the most of them. Absent: the scheduler's own, 999 and 499 for an
    LCM."""
    mode: Literal["gradient", "weights"] = "weights"
    """Ask the trainer for gradients, or fetch its weights and differentiate here. Both give the same update."""
    generator_steps: Annotated[int, Field(ge=1, le=100)] = 8
    """Generator updates per round."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    """Prompts per generator update."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """How many of them go through the networks together; absent: all. The same update in less memory, a pass more."""
    two_step_every: Annotated[int, Field(ge=1)] = 1
    """Prompts for each that takes more steps than one, whose gradient is several times smaller; 1: all do."""
    learning_rate: Rate = 3e-4
    """Of the generator's AdamW."""
    warmup_steps: Annotated[int, Field(ge=1)] = 10
    """Generator updates over which the learning rate rises linearly."""
    decay_steps: Annotated[int, Field(ge=1)] | None = None
    """Generator updates over which the learning rate falls to a twentieth, by a cosine; absent: it stays."""
    clip_norm: Positive = 1.0
    """Largest gradient norm."""
    ema: Share = 0.95
    """Decay of the averaged weights that are evaluated and exported."""
    surrogate_steps: Annotated[int, Field(ge=0)] | None = None
    """Surrogate steps per round. Absent: 4; of a run that begins from nothing `ranking_steps`."""
    overlap: bool = False
    """While the surrogate adapts to a round, update the generator by what it was before, and draw the next round."""
    warmup_rounds: Annotated[int, Field(ge=0)] | None = None
    """First rounds that fill the replay and adapt the surrogate without touching the generator. Absent: none where the
    run begins with a surrogate; else as many as it takes until the surrogate ranks new groups, see `max_restarts`."""
    ranking_steps: Annotated[int, Field(ge=0)] = 12
    """Surrogate steps in each of these rounds, where they are as many as it takes, of a pilot, and where
    `surrogate_steps` is absent of the training after it."""
    perturbation: Annotated[float, Field(ge=0, le=2)] = 0.5
    """Largest size of the smooth perturbations of the base's samples that are scored along with them in these rounds,
    in standard deviations of the latents; 0: none."""
    second_step_rounds: Annotated[int, Field(ge=0)] = 0
    """Every so many rounds the groups show what the second step does by itself: generator and base take it from the
    same x_tau1. The surrogate then learns from moves that no other group has; 0: never."""
    max_restarts: Annotated[int, Field(ge=0)] = 5
    """Times that a generator which was fooled goes back to where it began, in a run that begins from nothing."""
    settle_passes: Annotated[float, Field(ge=0)] = 2.0
    """Times that each group of the replay is trained on once more, at a rate that falls, before the generator's first
    update and before each restart."""
    ranking_rate: Annotated[float, Field(gt=0, le=10)] = 3.0
    """Times `surrogate.learning_rate` at which the surrogate learns in the rounds of ranking, and begins to settle."""
    settled_rate: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Times `surrogate.learning_rate` at which it adapts in training."""
    initial_adapter: ConfigPath | None = None
    """LoRA that the generator begins with, its folder or file, of any form that `--adapter` reads; absent: the base."""
    initial_surrogate: WeightsFile | None = None
    """`bundled` or a safetensors file written by `lasro pretrain`; absent: an untrained one."""
    initial_base_rewards: ConfigPath | None = None
    """The base_rewards.jsonl of the same `lasro pretrain`: its groups start the replay; absent: it is empty."""
    carried_groups: Annotated[int, Field(ge=1, le=100_000)] = 120
    """How many of the newest groups of `initial_base_rewards` are sampled again and preloaded into the replay."""
    carried_seeds: Annotated[int, Field(ge=1, le=256)] | None = None
    """First seeds of each of these groups; absent: all of them."""
    checkpoint_rounds: Annotated[int, Field(ge=1)] = 10
    """Rounds between checkpoints."""
    report_rounds: Annotated[int, Field(ge=1)] = 10
    """Rounds between rewrites of report.html."""

    @field_validator("timesteps")
    @classmethod
    def _one_for_each_step(cls, timesteps: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        steps = info.data.get("steps")  # absent where they are refused themselves
        return timesteps if timesteps is None or steps is None else falling_for(steps, timesteps)

    @model_validator(mode="after")
    def _settings_of_these_steps(self) -> Self:
        steps, most = list(self.steps), max(self.steps)
        if self.gradient_steps > most:
            raise ValueError(f"gradient_steps: got {self.gradient_steps} with steps {steps}, expected at most {most}")
        if self.two_step_every > 1 and (1 not in self.steps or most == 1):
            raise ValueError(
                f"two_step_every: got {self.two_step_every} with steps {steps}, expected 1: it spares prompts that "
                "take one step from taking more"
            )
        if self.second_step_rounds and self.steps != ONE_AND_TWO:
            raise ValueError(
                f"second_step_rounds: got {self.second_step_rounds} with steps {steps}, expected 0: the second step is "
                "moved by itself in runs of [1, 2] alone"
            )
        return self

    @field_validator("drift_budget", mode="before")
    @classmethod
    def _some_drift(cls, budget: Any) -> Any:
        if budget is None or budget == "none":
            return None
        try:
            value = math.nan if isinstance(budget, bool) else float(budget)
        except (TypeError, ValueError):
            value = math.nan
        if not 0 < value <= MOST_DRIFT:
            raise ValueError(
                f"Expected a number above 0, such as 0.1 (hardly visible) to 1, and at most {MOST_DRIFT:g}, or "
                '"none" for no limit'
            )
        return value

    @property
    def is_from_nothing(self) -> bool:
        """Whether the run has to find out by itself when its surrogate is good enough to follow."""
        given = (self.warmup_rounds, self.initial_surrogate, self.initial_base_rewards)
        return all(setting is None for setting in given)

    @property
    def ranking(self) -> SamplingSettings:
        """Of the rounds of ranking: more prompts, and of the noises only a part for perturbed samples.

        The base's own samples teach most; perturbed ones are told from their originals after a few.
        """
        return self.model_copy(
            update={
                "prompts_per_round": RANKING_PROMPTS * self.prompts_per_round,
                "reference_seeds": math.ceil(self.num_reference_seeds / PERTURBED_PART),
            }
        )

    @property
    def adaptation_steps(self) -> int:
        """Surrogate steps of a round of training."""
        if self.surrogate_steps is not None:
            return self.surrogate_steps
        return self.ranking_steps if self.is_from_nothing else SURROGATE_STEPS

    @property
    def max_rounds(self) -> int:
        """`rounds`, or the most that there may be."""
        return self.rounds or (MOST_ROUNDS_FROM_NOTHING if self.is_from_nothing else ROUNDS)
