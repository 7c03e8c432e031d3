"""What a run will ask of one reward, in calls and in time: pure functions.

Calls are counted as `budget.max_reward_calls` counts them: images, once per repeat that the reward is registered with.
Time is that of scoring alone: drawing and training come on top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lasro.config import PretrainSettings, RunSettings, SamplingSettings, TrainSettings
from lasro_client.run.probe_generator import probe_age

STAGES = 2


@dataclass(frozen=True)
class Speed:
    """How a reward works off images: waves of at most `concurrency` calls."""

    images_per_call: int
    concurrency: int
    repeats: int
    wave_s: float = 0.0
    """Time of a wave, as measured."""
    image_s: float = 0.0
    """Time of all waves over the number of images."""

    def waves(self, images: int) -> int:
        """How often its slots are filled for images that are asked for together."""
        calls = math.ceil(images / self.images_per_call) * self.repeats
        return math.ceil(calls / self.concurrency)

    def seconds(self, images: int) -> float:
        """Of images that are asked for together: by waves, or by images where those measured held fewer of them."""
        return max(self.waves(images) * self.wave_s, images * self.image_s)


@dataclass(frozen=True)
class Cost:
    """Of a part of a run."""

    calls: int
    scoring_s: float


def run_costs(config: RunSettings, held_out: int, batch: int, speed: Speed) -> dict[str, Cost]:
    """What `lasro train`, its evaluations of `held_out` prompts, and `lasro pretrain` will ask of the reward."""
    return {
        "train": train_cost(config.train, speed),
        "evaluations": evaluation_cost(held_out, batch, speed),
        "pretrain": pretrain_cost(config.pretrain, speed),
    }


def images_per_round(settings: SamplingSettings, policies: int) -> int:
    """One- and two-step images of all prompts and seeds, of the generator alone (1) or another beside it (2)."""
    seeds = settings.seeds_per_prompt + (policies - 1) * settings.num_reference_seeds
    return settings.prompts_per_round * seeds * STAGES


def train_cost(settings: TrainSettings, speed: Speed) -> Cost:
    """Stage 2. The base is sampled too once there is another: from the round after the first update on."""
    alone = min(settings.rounds, settings.warmup_rounds + 1)
    return _of_rounds(settings, alone, settings.rounds - alone, speed)


def pretrain_cost(settings: PretrainSettings, speed: Speed) -> Cost:
    """Stage 1: the base alone, and a scout beside it while one is out."""
    beside = sum(probe_age(settings, round) > 0 for round in range(settings.rounds))
    return _of_rounds(settings, settings.rounds - beside, beside, speed)


def evaluation_cost(prompts: int, batch: int, speed: Speed) -> Cost:
    """Before and after, both stages, in requests of `batch` images one after the other. No budget counts these."""
    full, rest = divmod(prompts, batch)
    scoring_s = full * speed.seconds(batch) + speed.seconds(rest)
    return Cost(2 * STAGES * prompts * speed.repeats, 2 * STAGES * scoring_s)


def affordable_rounds(settings: TrainSettings, calls_per_image: int, max_calls: int) -> int:
    """Rounds of stage 2 that fit into a budget, which all rewards of the run share; the run ends there, whole."""
    alone = min(settings.rounds, settings.warmup_rounds + 1)
    cheap, dear = (images_per_round(settings, policies) * calls_per_image for policies in (1, 2))
    if max_calls < alone * cheap:
        return max_calls // cheap
    return min(settings.rounds, alone + (max_calls - alone * cheap) // dear)


def _of_rounds(settings: SamplingSettings, alone: int, beside: int, speed: Speed) -> Cost:
    cheap, dear = (images_per_round(settings, policies) for policies in (1, 2))
    calls = (alone * cheap + beside * dear) * speed.repeats
    return Cost(calls, alone * speed.seconds(cheap) + beside * speed.seconds(dear))
