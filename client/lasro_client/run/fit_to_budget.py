"""What is exported keeps within `train.drift_budget`: a LoRA that went beyond it is scaled down.

The rounds hold the current weights at the budget, by a few prompts each. What is exported is their average, and its
drift is measured as it will be judged: on held-out prompts, whose images are drawn and not scored.
"""

from __future__ import annotations

from lasro.models.lora import parameters_set
from lasro.training.generator_trainer import GeneratorTrainer
from lasro_client.evaluation.drift import BaseImages, measure_movement
from lasro_client.run.drift_budget import largest

TRIES = 4
MARGIN = 0.98
"""Of the budget: what is measured on other prompts differs a little."""


def fit_to_budget(trainer: GeneratorTrainer, base: BaseImages, budget: float) -> float:
    """The factor, at most 1, by which the averaged LoRA keeps within the budget in one step and in two.

    Images change about in proportion to a LoRA's scale, so that a few tries are enough. Where the base draws everything
    alike there is nothing to measure by, and the factor is 1.
    """
    factor = 1.0
    for _ in range(TRIES):
        with parameters_set(trainer.parameters, trainer.scaled_average(factor)):
            drift = largest(distance.mean for distance in measure_movement(trainer.model, base).values())
        if drift is None or drift <= budget:
            return factor
        factor *= MARGIN * budget / drift
    return factor
