"""What is exported spends `train.drift_budget` and keeps within it: its LoRA is scaled a little.

The rounds hold the current weights at the budget, by a few prompts each. What is exported is their average, and its
drift is measured as it will be judged: on held-out prompts, whose images are drawn and not scored.
"""

from __future__ import annotations

import math

from lasro.models.lora import parameters_set
from lasro.training.generator_trainer import GeneratorTrainer
from lasro_client.evaluation.drift import BaseImages, measure_movement
from lasro_client.run.drift_budget import largest

TRIES = 8
MARGIN = 0.98
"""Of the budget: what is measured on other prompts differs a little."""
CLOSE = 0.9
"""Of the budget: a factor that leaves more of it unused is raised again."""
POWERS = (0.2, 5.0)
"""Images that are near black or white change less than in proportion, those of a steep model more."""


def fit_to_budget(trainer: GeneratorTrainer, base: BaseImages, budget: float, most: float = 1.0) -> float:
    """The factor, at most `most`, by which the averaged LoRA keeps within the budget in each number of steps.

    It is one at which this was measured: 0 is the base. Where the base draws everything alike there is nothing to
    measure by, and the factor is 1. So it is, or above, for an adapter within the budget.
    """
    factor, drift = 1.0, _drift(trainer, base, 1.0)
    if drift is None or drift <= budget:
        return 1.0 if not drift else _raised(trainer, base, budget, min(most, MARGIN * budget / drift))
    within, beyond, power = 0.0, 1.0, 1.0
    for _ in range(TRIES):  # drift ~ factor^power about where it was measured twice
        guess = factor * (MARGIN * budget / drift) ** (1 / power)
        tried = guess if within < guess < beyond else (within + beyond) / 2
        found = _drift(trainer, base, tried) or 0.0
        within, beyond = (tried, beyond) if found <= budget else (within, tried)
        if CLOSE * budget <= found <= budget:
            break
        found = max(found, 1e-6 * budget)
        power = min(max(math.log(found / drift) / math.log(tried / factor), POWERS[0]), POWERS[1])
        factor, drift = tried, found
    return within


def _raised(trainer: GeneratorTrainer, base: BaseImages, budget: float, wanted: float) -> float:
    found = _drift(trainer, base, wanted) if wanted > 1 else None
    return wanted if found is not None and found <= budget else 1.0


def _drift(trainer: GeneratorTrainer, base: BaseImages, factor: float) -> float | None:
    with parameters_set(trainer.parameters, trainer.scaled_average(factor)):
        return largest(distance.mean for distance in measure_movement(trainer.model, base).values())
