"""What a run will ask of one reward, in calls and in time: pure functions.

Calls are counted as `budget.max_reward_calls` counts them: images, once per repeat that the reward is registered with.
Time is that of scoring alone: drawing and training come on top. A run from nothing finds out itself how many rounds it
takes (`train_schedule`), so it has a least and a most; what is thrown away and done again is not foreseen.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from lasro.config import PretrainSettings, SamplingSettings, TrainSettings
from lasro.num_steps import NumSteps
from lasro.wire import RewardInfo
from lasro_client.run.probe_generator import moves_second_step_alone, probe_age
from lasro_client.run.ranking import FIRST_GOAL, WINDOW
from lasro_client.run.train_schedule import FEWEST_TRAINING_ROUNDS, PROOF_ROUNDS, most_ranking_rounds

FEWEST_WORTH = 1 + 4
"""Rounds, one of ranking and a few of training, below which a run from nothing cannot come to anything."""


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
        "train_least": least_train_cost(train, speed),
        "evaluations": evaluation_cost(held_out, batch, speed, len(train.steps)),
        "pretrain": pretrain_cost(pretrain, speed),
    }


def images_per_round(
    settings: SamplingSettings, policies: int, reference_steps: Sequence[NumSteps] | None = None
) -> int:
    """Images of all prompts, seeds, second-step draws and numbers of steps.

    Without (1) or with (2) those of a reference policy, which has images of the numbers of steps in `reference_steps`;
    absent: of all.
    """
    per_seed = settings.samples_per_seed
    own = settings.seeds_per_prompt * sum(per_seed.values())
    reference = settings.num_reference_seeds * sum(per_seed[n] for n in reference_steps or settings.steps)
    return settings.prompts_per_round * (own + (policies - 1) * reference)


class Rounds(NamedTuple):
    """Of stage 2, by what is done in them."""

    ranking: int
    training: int
    """With those of the pilot."""


def least_and_most_rounds(settings: TrainSettings) -> tuple[Rounds, Rounds]:
    """How many rounds stage 2 may take: a surrogate that soon ranks well, and one that takes all the rounds it may."""
    total = settings.max_rounds
    longest = most_ranking_rounds(settings)
    shortest = min(WINDOW, longest)
    most = Rounds(longest, total - longest)
    if settings.rounds is not None or longest == 0:
        return Rounds(shortest, total - shortest), most
    return Rounds(shortest, 1 + PROOF_ROUNDS + FEWEST_TRAINING_ROUNDS), most


def train_cost(settings: TrainSettings, speed: Speed) -> Cost:
    """Stage 2, at most."""
    return max(_train_costs(settings, speed), key=lambda cost: cost.calls)


def least_train_cost(settings: TrainSettings, speed: Speed) -> Cost:
    """Stage 2, at least; the same as `train_cost` where nothing is left to find out."""
    return min(_train_costs(settings, speed), key=lambda cost: cost.calls)


def _train_costs(settings: TrainSettings, speed: Speed) -> list[Cost]:
    return [_cost_of(images_of_rounds(settings, rounds), speed) for rounds in least_and_most_rounds(settings)]


def images_of_rounds(settings: TrainSettings, rounds: Rounds) -> list[int]:
    """Images of each round of stage 2. The base is sampled too once the generator is another, and perturbed samples in
    the first rounds of ranking."""
    begins_as_base = settings.initial_adapter is None
    cheap, dear = (images_per_round(settings, policies) for policies in (1, 2))
    alone = min(rounds.training, (settings.warmup_rounds or 0) + 1) if begins_as_base else 0
    plain = images_per_round(settings.ranking, 1 if begins_as_base else 2)
    perturbed = images_per_round(settings.ranking, 2) if settings.perturbation else plain
    first = min(rounds.ranking, FIRST_GOAL)
    return (
        [perturbed] * first + [plain] * (rounds.ranking - first) + [cheap] * alone + [dear] * (rounds.training - alone)
    )


def pretrain_cost(settings: PretrainSettings, speed: Speed) -> Cost:
    """Stage 1. The probe generator is sampled too while it is active."""
    return _cost_of((_images_of_stage1(settings, round) for round in range(settings.rounds)), speed)


def _images_of_stage1(settings: PretrainSettings, round: int) -> int:
    if probe_age(settings, round) == 0:
        return images_per_round(settings, 1)
    return images_per_round(settings, 2, (2,) if moves_second_step_alone(settings, round) else None)


def evaluation_cost(prompts: int, batch: int, speed: Speed, numbers_of_steps: int = 2) -> Cost:
    """Before and after, in each number of steps, `batch` images a request, one by one. No budget counts these."""
    full, rest = divmod(prompts, batch)
    scoring_s = full * speed.seconds(batch) + speed.seconds(rest)
    evaluations = 2 * numbers_of_steps
    return Cost(evaluations * prompts * speed.repeats, evaluations * scoring_s)


def affordable_rounds(settings: TrainSettings, calls_per_image: int, max_calls: int) -> int:
    """Rounds of stage 2 that fit into a budget, which all rewards of the run share; the run ends there, whole."""
    _, most = least_and_most_rounds(settings)
    return sum(images * calls_per_image <= max_calls for images in accumulate(images_of_rounds(settings, most)))


def fewest_calls(settings: TrainSettings, calls_per_image: int) -> int:
    """The least budget of a run from nothing that makes sense: of `FEWEST_WORTH` rounds, or all if they are fewer."""
    ranking = min(1, least_and_most_rounds(settings)[0].ranking)
    rounds = Rounds(ranking, min(FEWEST_WORTH, settings.max_rounds) - ranking)
    return calls_per_image * sum(images_of_rounds(settings, rounds))


def _cost_of(images_of_each_round: Iterable[int], speed: Speed) -> Cost:
    rounds = Counter(images_of_each_round)
    calls = sum(images * count for images, count in rounds.items()) * speed.repeats
    return Cost(calls, sum(count * speed.seconds(images) for images, count in rounds.items()))
