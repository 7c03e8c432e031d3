"""How far a model stands from its base on a few prompts, asked for again and again; no reward calls.

Shape legend: N prompts, HWC pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lasro.functional.drift import drift_distance, mean_square_between, mean_square_difference
from lasro.models.base import GeneratorModel
from lasro.training.prompts import Prompt
from lasro_client.evaluation.drift import OTHER_SEED_OFFSET
from lasro_client.evaluation.num_steps import ByNumSteps
from lasro_client.evaluation.score_prompts import batch_size, draw_one_and_two_steps

Images = ByNumSteps[list[np.ndarray]]


class Movement:
    """The base's images of some prompts, and by how much a model's images of the same noise differ from them.

    `units`: mean square pixel difference that counts as 1, the base's between two prompts; of one prompt, or of prompts
    that it draws alike, between two seeds. None where it draws everything alike.
    """

    def __init__(self, model: GeneratorModel, prompts: Sequence[Prompt], seed: int) -> None:
        self._model, self._prompts, self._seed = model, [prompt.text for prompt in prompts], seed
        self._base = self._draw(seed, base=True)
        self.units = ByNumSteps[float | None].of(lambda n: self._unit(self._base[n], n))

    def _unit(self, base_NHWC: list[np.ndarray], num_steps: int) -> float | None:
        between_prompts = mean_square_between(map(torch.from_numpy, base_NHWC))
        if between_prompts:
            return between_prompts
        other = self._draw(self._seed + OTHER_SEED_OFFSET, base=True)
        squares_N = _squares(base_NHWC, other.one_step if num_steps == 1 else other.two_step)
        return float(np.mean(squares_N)) or None

    def measure(self) -> ByNumSteps[float | None]:
        """Of the model with the weights that it has now; None without a unit."""
        images = self._draw(self._seed, base=False)
        return ByNumSteps.of(lambda n: drift_distance(_squares(images[n], self._base[n]), self.units[n])[0])

    def _draw(self, seed: int, base: bool) -> Images:
        model, drawn = self._model, ByNumSteps[list[np.ndarray]]([], [])
        step = batch_size(model.latent_shape, model.settings.max_batch)
        for start in range(0, len(self._prompts), step):
            texts = self._prompts[start : start + step]
            seeds = range(seed + start, seed + start + len(texts))
            for images, found in zip(draw_one_and_two_steps(model, texts, seeds, base), drawn.values(), strict=True):
                found.extend(images)
        return drawn


def _squares(a_NHWC: Sequence[np.ndarray], b_NHWC: Sequence[np.ndarray]) -> list[float]:
    pairs = zip(a_NHWC, b_NHWC, strict=True)
    return [mean_square_difference(torch.from_numpy(a), torch.from_numpy(b)) for a, b in pairs]
