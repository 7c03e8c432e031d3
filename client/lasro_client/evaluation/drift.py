"""How far fine-tuning moved the model from the base, on images of the same prompts and noise.

drift = measure_drift(model, prompts, seed, run / "drift")
write_json(run / "drift.json", drift.as_dict())

Shape legend: N prompts, HWC pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lasro.errors import WireError
from lasro.files import write_atomically, write_json
from lasro.functional.drift import drift_distance, mean_square_between, mean_square_difference
from lasro.images import MAX_PIXELS, decode_image, png_bytes
from lasro.models.base import GeneratorModel
from lasro.num_steps import ONE_AND_TWO, NumSteps
from lasro.training.prompts import Prompt
from lasro_client.evaluation.paired_statistics import Estimate, estimate, ratio_of_means
from lasro_client.evaluation.result import IMAGE_FOLDERS
from lasro_client.evaluation.score_prompts import batch_size, draw_in_steps

# Far from seed + i of any prompt, so that no image of one set is an image of the other.
OTHER_SEED_OFFSET = 1_000_000
OTHER_SEED_PROMPTS = 32
"""Of the held-out prompts, how many the base draws with another seed: the yardstick needs no more."""
Images = Iterable[np.ndarray]
"""One image of each prompt; iterated over several times."""


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
    """The same between two seeds of the base, over the prompts of `ratio`."""

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

    def both(self) -> dict[str, Any]:
        """The two yardsticks with their numbers of prompts, as in `held_out_drift` of summary.json."""
        return {
            "distance": self.distance.as_dict() | {"n": self.distance.n},
            "seeds": self.ratio.as_dict() | {"n": self.ratio.n},
            "rms_255": self.rms_255,
            "prompt_to_prompt_255": self.prompt_to_prompt_255,
            "seed_to_seed_255": self.seed_to_seed_255,
        }


def mean_absolute_difference(a_HWC: np.ndarray, b_HWC: np.ndarray) -> float:
    """Mean |a - b| over pixels and channels of two uint8 images, 0 to 255."""
    if a_HWC.shape != b_HWC.shape:
        raise WireError(f"images of {a_HWC.shape} and {b_HWC.shape}, expected the same shape")
    return float(np.abs(a_HWC.astype(np.int16) - b_HWC.astype(np.int16)).mean())


class StoredImages:
    """The images 00000.png ... of a folder, read at each iteration, so that they are not all in memory."""

    def __init__(self, folder: Path, count: int) -> None:
        self._paths = [folder / f"{index:05d}.png" for index in range(count)]

    def __iter__(self) -> Iterator[np.ndarray]:
        """uint8 [H, W, 3] each; raises FileNotFoundError for one that is not there."""
        return (np.array(decode_image(path.read_bytes(), MAX_PIXELS)) for path in self._paths)


def drift_figure(base: Images, adapted: Images, other_seed: Images) -> Drift:
    """Drift over N prompts; each argument gives one uint8 [H, W, 3] image per prompt, in the same order, at any time.

    The ratio is mean(adapted to base) / mean(seed to seed), its standard error over prompts: over those that
    `other_seed` has, which may be the first ones only.
    """
    moved_N = [mean_absolute_difference(a, b) for a, b in zip(base, adapted, strict=True)]
    seeds_N = [mean_absolute_difference(a, b) for a, b in zip(other_seed, base, strict=False)]
    squares_N = _mean_squares(base, adapted)
    between_prompts = mean_square_between(map(torch.from_numpy, base))
    return Drift(
        distance=_distance(squares_N, between_prompts or estimate(_mean_squares(other_seed, base)).mean),
        rms_255=math.sqrt(estimate(squares_N).mean or 0.0),
        prompt_to_prompt_255=None if between_prompts is None else math.sqrt(between_prompts),
        ratio=ratio_of_means(moved_N[: len(seeds_N)], seeds_N),
        mean_abs_255=estimate(moved_N).mean or 0.0,
        seed_to_seed_255=estimate(seeds_N).mean or 0.0,
    )


def _mean_squares(a: Images, b: Images) -> list[float]:
    """Of the images that both have, from the first on."""
    return [mean_square_difference(*map(torch.from_numpy, pair)) for pair in zip(a, b, strict=False)]


def _distance(squares_N: Sequence[float], unit: float | None) -> Estimate:
    mean, sem = drift_distance(squares_N, unit)
    return Estimate(mean, sem, 0, len(squares_N)) if mean is None else Estimate(mean, sem, len(squares_N), 0)


def measure_drift(
    model: GeneratorModel, prompts: Sequence[Prompt], seed: int, folder: Path | None = None, num_steps: NumSteps = 2
) -> Drift:
    """Draw each prompt in so many steps with seed + i by the base and by the adapted model, and compare.

    The images go to `folder`/before and /after, the prompts to prompts.json, where a folder is given.
    """
    base = _draw(model, prompts, seed, True, [num_steps])[num_steps]
    adapted = _draw(model, prompts, seed, False, [num_steps])[num_steps]
    other_seed = _draw(model, prompts, seed + OTHER_SEED_OFFSET, True, [num_steps])[num_steps]
    if folder is not None:
        write_json(folder / "prompts.json", [prompt.text for prompt in prompts])
        for name, images in (("before", base), ("after", adapted)):
            for index, image in enumerate(images):
                write_atomically(folder / name / f"{index:05d}.png", png_bytes(image))
    return drift_figure(base, adapted, other_seed)


def measure_held_out_drift(
    model: GeneratorModel,
    prompts: Sequence[Prompt],
    seed: int,
    folder: Path,
    steps: Sequence[NumSteps] = ONE_AND_TWO,
) -> dict[NumSteps, Drift]:
    """From the images that `evaluate` left of these prompts and this seed in `folder`/before and /after.

    The base draws the first prompts with another seed too. Raises FileNotFoundError where an image is gone.
    """
    other_seed = _draw(model, prompts[:OTHER_SEED_PROMPTS], seed + OTHER_SEED_OFFSET, True, steps)

    def measure(num_steps: NumSteps) -> Drift:
        base, adapted = (
            StoredImages(folder / name / IMAGE_FOLDERS[num_steps], len(prompts)) for name in ("before", "after")
        )
        return drift_figure(base, adapted, other_seed[num_steps])

    return {num_steps: measure(num_steps) for num_steps in steps}


class BaseImages(NamedTuple):
    """What the base draws of some prompts, prompt i with seed + i, to measure by how far the model has moved."""

    prompts: list[Prompt]
    seed: int
    images: dict[NumSteps, list[np.ndarray]]
    units: dict[NumSteps, float | None]
    """The mean square difference that counts as 1: between prompts or, where that is 0 or unknown, between seeds."""


def draw_base(
    model: GeneratorModel, prompts: Sequence[Prompt], seed: int, steps: Sequence[NumSteps] = ONE_AND_TWO
) -> BaseImages:
    """Draw them once, to be compared with at every `measure_movement`."""
    return _with_units(model, prompts, seed, _draw(model, prompts, seed, True, steps))


def stored_base(
    model: GeneratorModel,
    prompts: Sequence[Prompt],
    seed: int,
    folder: Path,
    steps: Sequence[NumSteps] = ONE_AND_TWO,
) -> BaseImages:
    """The same from the images that `evaluate` left of these prompts and this seed in `folder`.

    Raises FileNotFoundError where one is gone.
    """
    images = {n: list(StoredImages(folder / IMAGE_FOLDERS[n], len(prompts))) for n in steps}
    return _with_units(model, prompts, seed, images)


def _with_units(
    model: GeneratorModel, prompts: Sequence[Prompt], seed: int, images: dict[NumSteps, list[np.ndarray]]
) -> BaseImages:
    units = {n: mean_square_between(map(torch.from_numpy, of_n)) for n, of_n in images.items()}
    if not all(units.values()):
        other = _draw(model, prompts, seed + OTHER_SEED_OFFSET, True, list(images))
        units = {n: unit or estimate(_mean_squares(images[n], other[n])).mean for n, unit in units.items()}
    return BaseImages(list(prompts), seed, images, units)


def measure_movement(model: GeneratorModel, base: BaseImages) -> dict[NumSteps, Estimate]:
    """`Drift.distance` in each number of steps of the model with the weights that its adapter has now.

    To judge what a run would export, set the averaged ones: `with parameters_set(trainer.parameters, trainer.average)`.
    """
    adapted = _draw(model, base.prompts, base.seed, False, list(base.images))
    return {n: _distance(_mean_squares(of_n, adapted[n]), base.units[n]) for n, of_n in base.images.items()}


def _draw(
    model: GeneratorModel, prompts: Sequence[Prompt], seed: int, base: bool, steps: Sequence[NumSteps]
) -> dict[NumSteps, list[np.ndarray]]:
    size = batch_size(model.latent_shape, model.settings.max_batch)
    images: dict[NumSteps, list[np.ndarray]] = {n: [] for n in steps}
    for start in range(0, len(prompts), size):
        texts = [prompt.text for prompt in prompts[start : start + size]]
        drawn = draw_in_steps(model, texts, range(seed + start, seed + start + len(texts)), base, steps)
        for n, images_BHWC in drawn.items():
            images[n] += list(images_BHWC)
    return images
