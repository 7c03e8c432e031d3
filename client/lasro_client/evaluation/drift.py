"""How far fine-tuning moved the model on prompts that it should have left alone.

drift = measure_drift(model, prompts, seed, run / "drift")
write_json(run / "drift.json", drift.as_dict())

Shape legend: N prompts, HWC pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lasro.errors import WireError
from lasro.files import write_atomically, write_json
from lasro.images import png_bytes
from lasro.models.base import GeneratorModel
from lasro.training.prompts import Prompt
from lasro_client.evaluation.paired_statistics import Estimate, estimate, ratio_of_means
from lasro_client.evaluation.score_prompts import batch_size, draw_one_and_two_steps

# Far from seed + i of any prompt, so that no image of one set is an image of the other.
OTHER_SEED_OFFSET = 1_000_000


@dataclass(frozen=True)
class Drift:
    """0: unchanged. 1: as different from the base as the base with another seed."""

    ratio: Estimate
    mean_abs_255: float
    """Mean absolute pixel difference, adapted against base, same prompt and seed; 0 to 255."""
    seed_to_seed_255: float
    """The same between two seeds of the base: the yardstick."""

    def as_dict(self) -> dict[str, Any]:
        """The content of drift.json."""
        return {
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
    return Drift(
        ratio=ratio_of_means(moved_N, seeds_N),
        mean_abs_255=estimate(moved_N).mean or 0.0,
        seed_to_seed_255=estimate(seeds_N).mean or 0.0,
    )


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
