"""What a model is worth: its VAE, its binding at one, two and four steps, its emoji, its speed.

The judge is the detector of `lasro_rewards.attribute_binding`. Prompts and seeds are fixed, so two models see the same.

Shape legend: N prompts, B of a batch, H, W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from lasro.config import ModelSettings
from lasro.demo.shapes import Scene, caption, draw, random_scene
from lasro.files import write_json
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro_client.evaluation.generate import draw as generate
from lasro_client.evaluation.paired_statistics import estimate, paired_difference
from lasro_rewards.attribute_binding import attribute_binding
from tiny_recipe.captions import emoji_prompt
from tiny_recipe.emoji_sources import STYLES
from tiny_recipe.figures import figures_table
from tiny_recipe.reporting import device_name, pixels, row_above_row, save_grid

BATCH = 16
SHOWN = 32
TIMED_IMAGES, TIMED_RUNS = 8, 7
STEPS = {"one_step": 1, "two_step": 2, "four_step": 4}
EMOJI = (
    "dog face", "red apple", "rocket", "sunflower", "pizza", "octopus", "hamburger", "guitar", "crown", "turtle",
    "automobile", "birthday cake",
)  # fmt: skip
Images = NDArray[np.uint8]
Report = dict[str, Any]


@dataclass(frozen=True)
class Scenes:
    """Drawings and the prompts that describe them truly."""

    scenes: tuple[Scene, ...]

    @classmethod
    def drawn(cls, count: int, num_objects: int, seed: int) -> Scenes:
        rng = np.random.default_rng([seed, num_objects])
        return cls(tuple(random_scene(rng, num_objects) for _ in range(count)))

    @property
    def prompts(self) -> list[str]:
        return [caption(scene) for scene in self.scenes]

    def images(self, size_px: int) -> Images:
        return np.stack([draw(scene, size_px) for scene in self.scenes])


def binding(images_NHW3: Images, prompts: Sequence[str]) -> list[float | None]:
    """The detector's score of each image, in [0, 1]."""
    scores = attribute_binding([Image.fromarray(image) for image in images_NHW3], list(prompts), [None] * len(prompts))
    return [float(score) if isinstance(score, int | float) else None for score in scores]


def batches(count: int) -> Iterator[slice]:
    return (slice(start, min(start + BATCH, count)) for start in range(0, count, BATCH))


def images_of(model: GeneratorModel, prompts: Sequence[str], steps: int, seed: int) -> Images:
    """Image i is what a stock pipeline draws with a CPU generator seeded `seed + i`."""
    parts = [
        generate(model, prompts[part], range(seed + part.start, seed + part.stop), steps)
        for part in batches(len(prompts))
    ]
    return np.concatenate(parts)


@torch.no_grad()
def through_vae(model: GeneratorModel, images_NHW3: Images) -> tuple[Images, NDArray[np.float64]]:
    """The images after one pass, and the mean absolute error of each on pixels in [-1, 1], unrounded."""
    passed, errors = [], []
    for part in batches(len(images_NHW3)):
        latents = model.encode(images_NHW3[part])
        made = (2 * model.decode_pixels(latents) - 1).clamp(-1, 1)
        given = torch.from_numpy(images_NHW3[part]).to(made.device).permute(0, 3, 1, 2) / 127.5 - 1
        errors.append((made - given).abs().mean((1, 2, 3)).cpu().numpy().astype(np.float64))
        passed.append(pixels(made))
    return np.concatenate(passed), np.concatenate(errors)


def vae_figures(model: GeneratorModel, two: Scenes, folder: Path) -> Report:
    images = two.images(model.image_size[0])
    passed, errors = through_vae(model, images)
    before, after = binding(images, two.prompts), binding(passed, two.prompts)
    bright = [index for index, scene in enumerate(two.scenes) if scene.background != "navy"]
    save_grid(folder / "vae.webp", row_above_row(images[:SHOWN], passed[:SHOWN], 8), columns=8)
    return {
        "drawings": estimate(before).as_dict(),
        "vae_pass": estimate(after).as_dict(),
        "vae_keeps": kept(before, after),
        "vae_keeps_without_navy": kept([before[i] for i in bright], [after[i] for i in bright]),
        "vae_error": {"mean": float(errors.mean()), "sem": None},
    }


def kept(before: Sequence[float | None], after: Sequence[float | None]) -> dict[str, float | None]:
    """Mean after over mean before."""
    means = estimate(after).mean, estimate(before).mean
    return {"mean": None if means[0] is None or not means[1] else means[0] / means[1], "sem": None}


def generation_figures(model: GeneratorModel, two: Scenes, one: Scenes, seed: int, folder: Path) -> Report:
    figures: Report = {}
    scores = {}
    for name, steps in STEPS.items():
        images = images_of(model, two.prompts, steps, seed)
        scores[name] = binding(images, two.prompts)
        figures[name] = estimate(scores[name]).as_dict()
        save_grid(folder / f"{name}.webp", images[:SHOWN], columns=8)
    figures["one_below_two"] = paired_difference(scores["one_step"], scores["two_step"]).as_dict()
    figures["four_above_two"] = paired_difference(scores["two_step"], scores["four_step"]).as_dict()
    images = images_of(model, one.prompts, 2, seed)
    figures["single_object"] = estimate(binding(images, one.prompts)).as_dict()
    save_grid(folder / "single_object.webp", images[:SHOWN], columns=8)
    prompts = [emoji_prompt(name, style) for style in STYLES for name in EMOJI]
    save_grid(folder / "emoji.webp", images_of(model, prompts, 2, seed), columns=len(EMOJI))
    return figures


def image_times_s(models: Sequence[GeneratorModel], prompts: Sequence[str]) -> list[float]:
    """Seconds per image at two steps, the median of runs in turn, so that a busy machine is busy for all."""
    timed, times = prompts[:TIMED_IMAGES], [list[float]() for _ in models]
    for run in range(TIMED_RUNS + 1):
        for model, found in zip(models, times, strict=True):
            started = time.perf_counter()
            generate(model, timed, range(len(timed)), 2)
            if run:  # the first fills caches
                found.append((time.perf_counter() - started) / len(timed))
    return [median(found) for found in times]


def report(paths: Sequence[str], folder: Path, count: int, seed: int, console: Console) -> dict[str, Report]:
    """Measure each model, the first as the one to compare with; writes `report.json`, `report.md` and the grids."""
    two, one = Scenes.drawn(count, 2, seed), Scenes.drawn(count, 1, seed)
    models = {path: load_model(ModelSettings(path=path)) for path in paths}
    found: dict[str, Report] = {}
    for path, model in models.items():
        grids = folder / Path(path).name
        started = time.monotonic()
        found[path] = vae_figures(model, two, grids) | generation_figures(model, two, one, seed, grids)
        console.print(f"{path}: measured in {time.monotonic() - started:.0f} s, pictures in {grids}", highlight=False)
    times = image_times_s(list(models.values()), two.prompts)
    for figures, image_s in zip(found.values(), times, strict=True):
        figures["image_s"] = {"mean": image_s, "sem": None}
        figures["image_time_ratio"] = {"mean": image_s / times[0], "sem": None}
    device = device_name(next(iter(models.values())).device)
    write_json(folder / "report.json", {"prompts": count, "seed": seed, "device": device, "models": found})
    table = figures_table(found)
    (folder / "report.md").write_text(f"{count} prompts, seed {seed}, {device}\n\n{table}\n", encoding="utf-8")
    console.print(f"\n{table}", highlight=False, soft_wrap=True, markup=False)
    return found
