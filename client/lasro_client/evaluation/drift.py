"""How far fine-tuning moved the model from the base, on images of the same prompts and noise.

drift = measure_drift(model, prompts, seed, run / "drift")
write_json(run / "drift.json", drift.as_dict())

Shape legend: N prompts, HWC pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lasro.errors import WireError
from lasro.files import write_atomically, write_json
from lasro.functional.drift import drift_distance, mean_square_between, mean_square_difference
from lasro.images import png_bytes
from lasro.models.base import GeneratorModel
from lasro.training.prompts import Prompt
from lasro_client.evaluation.paired_statistics import Estimate, estimate, ratio_of_means
from lasro_client.evaluation.score_prompts import batch_size, draw_one_and_two_steps

# Far from seed + i of any prompt, so that no image of one set is an image of the other.
OTHER_SEED_OFFSET = 1_000_000


@dataclass(frozen=True)
class Drift:
    """The distance from the base, by two yardsticks: the base's change of prompt, and its change of seed."""

    distance: Estimate
    """Root mean square pixel difference over that between the base's images of two prompts. 0: unchanged. 1: as far
    from the base's image as its image of another prompt. For one prompt alone, over that between two seeds."""
    rms_255: float
    """Root mean square pixel difference, adapted against base, same prompt and seed; 0 to 255."""
    prompt_to_prompt_255: float | None
    """The same between two prompts of the base: the yardstick. None for fewer than two prompts."""
    ratio: Estimate
    """Mean absolute pixel difference, in changes of seed. 0: unchanged. 1: as different as another seed of the base."""
    mean_abs_255: float
    """Mean absolute pixel difference, adapted against base, same prompt and seed; 0 to 255."""
    seed_to_seed_255: float
    """The same between two seeds of the base."""

    def as_dict(self) -> dict[str, Any]:
        """The content of drift.json."""
        return {
            "distance": self.distance.as_dict(),
            "rms_255": self.rms_255,
            "prompt_to_prompt_255": self.prompt_to_prompt_255,
            "ratio": self.ratio.as_dict(),
            "mean_abs_255": self.mean_abs_255,
            "seed_to_seed_255": self.seed_to_seed_255,
            "n": self.ratio.n,
        }


def mean_absolute_difference(a_HWC: np.ndarray, b_HWC: np.ndarray) -> float:
    """Mean |a - b| over pixels and channels of two uint8 images, 0 to 255."""
    if a_HWC.shape != b_HWC.shape:
        raise WireError(f"images of {a_HWC.shape} and {b_HWC.shape}, expected the same shape")
    return float(np.abs(a_HWC.astype(np.int16) - b_HWC.astype(np.int16)).mean())


def drift_figure(base: Sequence[np.ndarray], adapted: Sequence[np.ndarray], other_seed: Sequence[np.ndarray]) -> Drift:
    """Drift over N prompts; each argument holds one uint8 [H, W, 3] image per prompt, in the same order.

    The ratio is mean(adapted to base) / mean(seed to seed), its standard error over prompts.
    """
    moved_N = [mean_absolute_difference(a, b) for a, b in zip(base, adapted, strict=True)]
    seeds_N = [mean_absolute_difference(a, b) for a, b in zip(base, other_seed, strict=True)]
    squares_N = _mean_squares(base, adapted)
    between_prompts = mean_square_between(map(torch.from_numpy, base))
    return Drift(
        distance=_distance(squares_N, between_prompts, _mean_squares(base, other_seed)),
        rms_255=math.sqrt(estimate(squares_N).mean or 0.0),
        prompt_to_prompt_255=None if between_prompts is None else math.sqrt(between_prompts),
        ratio=ratio_of_means(moved_N, seeds_N),
        mean_abs_255=estimate(moved_N).mean or 0.0,
        seed_to_seed_255=estimate(seeds_N).mean or 0.0,
    )


def _mean_squares(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> list[float]:
    return [mean_square_difference(*map(torch.from_numpy, pair)) for pair in zip(a, b, strict=True)]


def _distance(squares_N: Sequence[float], between_prompts: float | None, seeds_N: Sequence[float]) -> Estimate:
    """In changes of prompt; of one prompt, or of prompts that the base draws alike, in changes of seed."""
    mean, sem = drift_distance(squares_N, between_prompts or estimate(seeds_N).mean)
    return Estimate(mean, sem, 0, len(squares_N)) if mean is None else Estimate(mean, sem, len(squares_N), 0)


def measure_drift(model: GeneratorModel, prompts: Sequence[Prompt], seed: int, folder: Path | None = None) -> Drift:
    """Draw each prompt in two steps with seed + i by the base and by the adapted model, and compare.

    The images go to `folder`/before and /after, the prompts to prompts.json, where a folder is given.
    """
    base = _draw(model, prompts, seed, base=True)
    adapted = _draw(model, prompts, seed, base=False)
    other_seed = _draw(model, prompts, seed + OTHER_SEED_OFFSET, base=True)
    if folder is not None:
        write_json(folder / "prompts.json", [prompt.text for prompt in prompts])
        for name, images in (("before", base), ("after", adapted)):
            for index, image in enumerate(images):
                write_atomically(folder / name / f"{index:05d}.png", png_bytes(image))
    return drift_figure(base, adapted, other_seed)


def _draw(model: GeneratorModel, prompts: Sequence[Prompt], seed: int, base: bool) -> list[np.ndarray]:
    step, images = batch_size(model.latent_shape, model.settings.max_batch), []
    for start in range(0, len(prompts), step):
        texts = [prompt.text for prompt in prompts[start : start + step]]
        _, images_BHWC = draw_one_and_two_steps(model, texts, range(seed + start, seed + start + len(texts)), base)
        images += list(images_BHWC)
    return images
