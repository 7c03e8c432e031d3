"""What is compared: every method, and LaSRO with one thing changed, each as the settings that make it so.

Settings are keys of a run's TOML file; what is not named is default. LaSRO begins with no surrogate, so that the calls
that teach it to rank are counted like all others. `FILES` is where `benchmarks.methods.files` puts what some need, from
the folder of a run.

Not here, since no setting says it: a surrogate whose trunk is a small CNN, and one that looks at pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.easy_reward import METHODS as EASY_REWARD
from benchmarks.easy_reward import teacher_folder

Settings = Mapping[str, Any]
FILES = "../../../../files"
TEACHER_LATENTS, RANDOM_TRUNK = "teacher-latents.safetensors", "random-trunk"
STAGE_1 = str(Path(__file__).parents[2] / "configs" / "labels" / "demo-stage1.jsonl")
ATTRIBUTE_BINDING, COMPRESSIBILITY, ALIGNMENT, BRIGHTNESS = (
    "attribute-binding", "jpeg-compressibility", "prompt-alignment", "brightness",
)  # fmt: skip

SLOW = (1e-4, 3e-4, 1e-3)
"""Rates of methods that follow a gradient of the reward or of a surrogate: many updates for a call."""
FAST = (3e-4, 1e-3, 3e-3)
"""Rates of methods that learn from rewards alone: few updates, each of noisier gradients."""
REWARDED_ROUND: Settings = {
    "train.prompts_per_round": 4,
    "train.seeds_per_prompt": 8,  # they compare samples of a prompt: three prompts of four are too few
    "train.reference_seeds": 1,  # the base's samples cost calls and teach them little
}
TEACHER: Settings = {
    "method.teacher": str(teacher_folder("bundled")),  # what it was distilled from is not shipped
    "method.teacher_latents": f"{FILES}/{TEACHER_LATENTS}",
}


@dataclass(frozen=True)
class Variant:
    """Settings that all of its runs have, besides learning rate and seed."""

    name: str
    says: str
    """What it is, for the tables."""
    settings: Settings = field(default_factory=dict)
    rates: tuple[float, ...] = ()
    """Learning rates tried, rising; one is taken as it is, none means that of LaSRO."""
    rewards: tuple[str, ...] | None = None
    """The only rewards that it is for; None: all."""
    trains: bool = True


def _method(
    kind: str, says: str, rates: tuple[float, ...], rewards: tuple[str, ...] | None = None, **more: Any
) -> Variant:
    known = {f"method.{key}": value for key, value in EASY_REWARD.get(kind, {}).items()}
    settings = {"method.type": kind} | known | {key.replace("__", "."): value for key, value in more.items()}
    return Variant(kind, says, settings, rates, rewards)


def _rewarded(kind: str, says: str, **more: Any) -> Variant:
    one = _method(kind, says, FAST, **more)
    return Variant(one.name, one.says, {**REWARDED_ROUND, **one.settings}, one.rates)


METHODS: tuple[Variant, ...] = (
    _method("lasro", "LaSRO, its surrogate from nothing", SLOW),
    _method("true-gradient", "the reward's own gradient", SLOW, (BRIGHTNESS,), method__regulariser_weight=0.0),
    _rewarded("rlcm", "RLCM: PPO on the noise between steps", method__prompt_samples=8),
    _rewarded("ddpo", "DDPO: the same without a clip", method__prompt_samples=8),
    _rewarded("rebel", "REBEL: regression of differences", method__prompt_samples=8),
    _rewarded("pso-online", "PSO on a round's pairs"),
    _rewarded("pso-offline", "PSO on stored pairs"),
    _rewarded("diffusion-dpo", "Diffusion-DPO on stored pairs"),
    _rewarded("gors", "distillation on the best samples"),
    Variant(
        "reward-guided-lcd",
        "distillation, guided by the surrogate",
        {"method.type": "reward-guided-lcd", **TEACHER},
        SLOW,
    ),
    _method("noise-tilting", "the first noise moved by the surrogate", SLOW),
)
BEST_OF_N = Variant("best-of-n", "best of N images, no training", trains=False)

ABLATIONS: tuple[Variant, ...] = (
    Variant("lasro-random-trunk", "trunk of random weights", {"surrogate.backbone": f"{FILES}/{RANDOM_TRUNK}"}),
    Variant("lasro-two-step-alone", "two-step samples alone", {"train.steps": [2]}),
    Variant(
        "lasro-on-policy-alone",
        "nothing older than four rounds replayed",
        {"surrogate.buffer_groups": 12, "surrogate.recent_groups": 12},
    ),
    Variant("lasro-no-ranking", "no rounds of ranking first", {"train.warmup_rounds": 0}),
    Variant("lasro-clean-latents", "surrogate without noise augmentation", {"surrogate.max_timestep": 1}),
    Variant("lasro-no-ema", "last weights in place of averaged ones", {"train.ema": 0.0}),
    Variant(
        "lasro-regulariser-lcm",
        "LCM loss in place of the distance to the base",
        {"method.regulariser": "lcm", **TEACHER},
    ),
    Variant("lasro-regulariser-none", "no regulariser but the drift budget", {"method.regulariser_weight": 0.0}),
    Variant("lasro-s-maximum", "S by the moving maximum", {"method.score_scale": "maximum"}),
    Variant("lasro-few-references", "one reference noise a prompt", {"train.reference_seeds": 1}),
    Variant("lasro-no-rate-warm-up", "learning rate whole from the first update", {"train.warmup_steps": 1}),
    Variant("lasro-small-batch", "updates of 8 prompts in place of 32", {"train.batch_size": 8}),
    Variant("lasro-one-update", "one update a round in place of eight", {"train.generator_steps": 1}),
)

SHIPPED: Settings = {
    "train.initial_surrogate": "bundled",
    "train.prompts_per_round": 2,
    "train.reference_seeds": 2,
    "surrogate.learning_rate": 5e-6,  # as in configs/demo.toml, where its training ended
    "surrogate.warmup_steps": 60,
    "surrogate.groups_per_step": 2,
    "surrogate.tie_margin_unit": "absolute",
    "health.on_trouble": "ignore",
}
"""A surrogate that ranks well from the start, many updates for few calls, and nothing that ends a run which fails."""
FROZEN: Settings = {"train.surrogate_steps": 0}
REPLAYED: Settings = {"train.initial_base_rewards": STAGE_1, "train.carried_groups": 60, "train.carried_seeds": 4}
UNHELD: Settings = {"train.drift_budget": "none"}


def _collapse(name: str, says: str, *settings: Settings) -> Variant:
    made = {key: value for each in (SHIPPED, *settings) for key, value in each.items()}
    return Variant(f"lasro-{name}", f"shipped surrogate, {says}", made, (1e-3,), (ATTRIBUTE_BINDING,))


COLLAPSE: tuple[Variant, ...] = (
    _collapse("frozen", "frozen, no drift budget", FROZEN, UNHELD),
    _collapse("frozen-held", "frozen, within the drift budget", FROZEN),
    _collapse("online", "adapted online, no drift budget", UNHELD),
    _collapse("online-held", "adapted online, within the drift budget"),
    _collapse("stage-1", "adapted online, samples of stage 1 replayed", REPLAYED),
)
"""Where a surrogate leads a generator, and what stops the collapse. Calls of stage 1 are not counted in these."""

VARIANTS: dict[str, Variant] = {one.name: one for one in (*METHODS, BEST_OF_N, *ABLATIONS, *COLLAPSE)}
