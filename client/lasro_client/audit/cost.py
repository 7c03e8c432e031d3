"""What a run will ask of one reward, in calls and in time: pure functions.

Calls are counted as `budget.max_reward_calls` counts them: images, once per repeat that the reward is registered with.
Time is that of scoring alone: drawing and training come on top.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lasro.config import PretrainSettings, SamplingSettings, TrainSettings
from lasro.wire import RewardInfo
from lasro_client.evaluation.num_steps import ALL_NUM_STEPS, NumSteps
from lasro_client.run.probe_generator import moves_second_step_alone, probe_age


@dataclass(frozen=True)
class Speed:
    """How fast a reward scores images: in waves of at most `concurrency` calls."""

    images_per_call: int
    concurrency: int
    repeats: int
    wave_s: float = 0.0
    """Time of a wave, as measured."""
    image_s: float = 0.0
    """Time of all waves over the number of images."""

    @classmethod
    def registered(cls, reward: RewardInfo) -> Speed:
        """What its registration says; times are not measured yet."""
        return cls(reward.images_per_call, reward.concurrency, reward.repeats)

    def waves(self, images: int) -> int:
        """How many waves of calls score images that are asked for together."""
        calls = math.ceil(images / self.images_per_call) * self.repeats
        return math.ceil(calls / self.concurrency)

    def seconds(self, images: int) -> float:
        """Time to score images asked for together: by waves, or by images where the measured waves were small."""
        return max(self.waves(images) * self.wave_s, images * self.image_s)


@dataclass(frozen=True)
class Cost:
    """What a part of a run costs."""

    calls: int
    scoring_s: float


def run_costs(
    train: TrainSettings, pretrain: PretrainSettings, held_out: int, batch: int, speed: Speed
) -> dict[str, Cost]:
    """What `lasro train`, its evaluations of `held_out` prompts, and `lasro pretrain` will ask of the reward."""
    return {
        "train": train_cost(train, speed),
        "evaluations": evaluation_cost(held_out, batch, speed),
        "pretrain": pretrain_cost(pretrain, speed),
    }


def images_per_round(
    settings: SamplingSettings, policies: int, reference_steps: Sequence[NumSteps] = ALL_NUM_STEPS
) -> int:
    """One- and two-step images of all prompts, seeds and second-step draws.

    Without (1) or with (2) those of a reference policy, which has images of the numbers of steps in `reference_steps`.
    """
    per_seed = {1: 1, 2: settings.second_step_draws}
    own = settings.seeds_per_prompt * sum(per_seed.values())
    reference = settings.num_reference_seeds * sum(per_seed[num_steps] for num_steps in reference_steps)
    return settings.prompts_per_round * (own + (policies - 1) * reference)


def train_cost(settings: TrainSettings, speed: Speed) -> Cost:
    """Stage 2. The base is sampled too once the generator is another."""
    alone = _rounds_as_base(settings)
    cheap, dear = (images_per_round(settings, policies) for policies in (1, 2))
    return _of_rounds({cheap: alone, dear: settings.max_rounds - alone}, speed)


def pretrain_cost(settings: PretrainSettings, speed: Speed) -> Cost:
    """Stage 1. The probe generator is sampled too while it is active."""
    return _of_rounds(Counter(_images_of_stage1(settings, round) for round in range(settings.rounds)), speed)


def _images_of_stage1(settings: PretrainSettings, round: int) -> int:
    if probe_age(settings, round) == 0:
        return images_per_round(settings, 1)
    return images_per_round(settings, 2, (2,) if moves_second_step_alone(settings, round) else ALL_NUM_STEPS)


def evaluation_cost(prompts: int, batch: int, speed: Speed) -> Cost:
    """Before and after, in one step and in two, `batch` images a request, one by one. No budget counts these."""
    full, rest = divmod(prompts, batch)
    scoring_s = full * speed.seconds(batch) + speed.seconds(rest)
    evaluations = 2 * len(ALL_NUM_STEPS)
    return Cost(evaluations * prompts * speed.repeats, evaluations * scoring_s)


def affordable_rounds(settings: TrainSettings, calls_per_image: int, max_calls: int) -> int:
    """Rounds of stage 2 that fit into a budget, which all rewards of the run share; the run ends there, whole."""
    alone = _rounds_as_base(settings)
    cheap, dear = (images_per_round(settings, policies) * calls_per_image for policies in (1, 2))
    if max_calls < alone * cheap:
        return max_calls // cheap
    return min(settings.max_rounds, alone + (max_calls - alone * cheap) // dear)


def _rounds_as_base(settings: TrainSettings) -> int:
    """Rounds sampled before the generator's first update; none where it begins with an adapter."""
    return 0 if settings.initial_adapter is not None else min(settings.max_rounds, (settings.warmup_rounds or 0) + 1)


def _of_rounds(rounds: Mapping[int, int], speed: Speed) -> Cost:
    """Of so many rounds of so many images: number of rounds by number of images."""
    calls = sum(images * count for images, count in rounds.items()) * speed.repeats
    return Cost(calls, sum(count * speed.seconds(images) for images, count in rounds.items()))
