"""What a detector that nobody trained on says of a run: attribute binding judged by outlines, not by overlaps.

    python benchmarks/second_judge.py runs/demo

A reward that is trained on flatters. This one was written apart from `lasro_rewards.attribute_binding` and shares
nothing with it but palette and prompt grammar: it finds objects by their distance to the border's colour, names colours
in RGB, and shapes by the Fourier spectrum of the outline and the filled share. It reads the images that the run's
evaluation saved. `--drawings N` judges perfect drawings instead, with right and with swapped colours.

Shape legend: H rows, W columns, 3 RGB, F features, S shapes, C colours, N phrases, M objects.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from lasro.demo.shapes import (
    COLORS,
    SHAPES,
    ObjectSpec,
    ShapePrompt,
    caption,
    coverage,
    draw,
    parse_prompt,
    random_scene,
)
from lasro.num_steps import JSON_NAMES, ONE_AND_TWO, NumSteps
from lasro_client.evaluation.paired_statistics import estimate
from lasro_client.evaluation.result import IMAGE_FOLDERS

OBJECT_RGB_DISTANCE = 42.0
MIN_OBJECT_PX = 90
RAYS, HARMONICS = 72, 10
COLOR_SIGMA = 32.0
SHAPE_SIGMA = 0.03
MISSING = 0.05
Figures = dict[str, dict[str, dict[str, Any]]]


def outline_features(mask_HW: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[F]: Fourier magnitudes of the outermost radius by angle, the share of that outline which is filled, its spread.

    All are relative to the mean radius, so size does not matter. Turning changes one alone: the real part of the
    fourth harmonic, without which a diamond is a square.
    """
    y, x = np.nonzero(mask_HW)
    dy, dx = y - y.mean(), x - x.mean()
    ray = ((np.arctan2(dy, dx) + np.pi) / (2 * np.pi) * RAYS).astype(int) % RAYS
    radius_R = ndimage.maximum(np.hypot(dy, dx), ray, np.arange(RAYS))
    radius_R = np.where(radius_R > 0, radius_R, np.median(radius_R))
    spectrum = np.fft.rfft(radius_R / radius_R.mean())[1 : HARMONICS + 1] / RAYS
    outline_px = (radius_R**2).sum() * np.pi / RAYS
    spread = (np.hypot(dy, dx) ** 2).mean() / radius_R.mean() ** 2
    return np.array([*abs(spectrum), spectrum[3].real, 0.5 * len(y) / outline_px, 0.5 * spread])


@cache
def shape_templates() -> NDArray[np.float64]:
    """[S, K, F]: features of drawn shapes in K sizes and turns."""
    specs = [(size, angle) for size in (0.27, 0.33, 0.4) for angle in (-0.2, -0.07, 0.07, 0.2)]
    return np.array(
        [
            [
                outline_features(coverage(ObjectSpec("red", shape, 0, 0, size, angle), 128) > 0.5)
                for size, angle in specs
            ]
            for shape in SHAPES
        ]
    )


def shape_probabilities(mask_HW: NDArray[np.bool_]) -> dict[str, float]:
    """In [0, 1], summing to at most 1: an outline unlike all shapes gets little of any."""
    distance_S = np.linalg.norm(shape_templates() - outline_features(mask_HW), axis=2).min(1)
    likelihood_S = np.exp(-0.5 * (distance_S / SHAPE_SIGMA) ** 2)
    return dict(zip(SHAPES, likelihood_S / (likelihood_S.sum() + np.exp(-4.5)), strict=True))


def color_probabilities(rgb_3: NDArray[np.float64]) -> dict[str, float]:
    """In [0, 1], summing to at most 1."""
    distance_C = np.linalg.norm(np.array(list(COLORS.values())) - rgb_3, axis=1)
    likelihood_C = np.exp(-0.5 * (distance_C / COLOR_SIGMA) ** 2)
    return dict(zip(COLORS, likelihood_C / (likelihood_C.sum() + np.exp(-4.5)), strict=True))


def objects_of(rgb_HW3: NDArray[np.uint8], count: int) -> list[tuple[NDArray[np.bool_], NDArray[np.float64]]]:
    """Masks and median colours of the largest objects, one more than asked for at the most."""
    pixels = ndimage.median_filter(rgb_HW3, size=(3, 3, 1)).astype(float)
    border = np.concatenate([pixels[:3].reshape(-1, 3), pixels[-3:].reshape(-1, 3)])
    apart = np.linalg.norm(pixels - np.median(border, axis=0), axis=2) > OBJECT_RGB_DISTANCE
    labels, number = ndimage.label(apart)
    sizes = np.asarray(ndimage.sum_labels(apart, labels, np.arange(1, number + 1)))
    found = []
    for label in np.argsort(-sizes)[: count + 1] + 1:
        mask = labels == label
        if sizes[label - 1] >= MIN_OBJECT_PX:
            core = ndimage.binary_erosion(mask, iterations=2)
            found.append((mask, np.median(pixels[core if core.any() else mask], axis=0)))
    return found


def judge(rgb_HW3: NDArray[np.uint8], prompt: ShapePrompt) -> float:
    """Product over phrases of P(colour) P(shape), under the best assignment, in [0, 1]."""
    found = objects_of(rgb_HW3, len(prompt.phrases))
    if not found:
        return 0.0
    named = [(color_probabilities(rgb_3), shape_probabilities(mask)) for mask, rgb_3 in found]
    score_NM = np.array([[c[p.color] * s[p.shape] for c, s in named] for p in prompt.phrases])
    rows, columns = linear_sum_assignment(score_NM, maximize=True)
    return float(score_NM[rows, columns].prod()) * MISSING ** (len(prompt.phrases) - len(rows))


def judge_run(run: Path) -> Figures:
    """Before, after and paired difference, by number of steps."""
    scores: dict[tuple[NumSteps, str], list[float]] = {}
    for when in ("before", "after"):
        prompts = json.loads((run / "evaluation" / f"{when}.json").read_text())["prompts"]
        parsed = [parse_prompt(text) for text in prompts]
        for num_steps in ONE_AND_TWO:
            folder = run / "evaluation" / when / IMAGE_FOLDERS[num_steps]
            paths = [folder / f"{index:05d}.png" for index in range(len(prompts))]
            scores[num_steps, when] = [
                judge(np.asarray(Image.open(path).convert("RGB")), prompt)
                for path, prompt in zip(paths, parsed, strict=True)
                if prompt is not None
            ]
    result: Figures = {}
    for num_steps in ONE_AND_TWO:
        before, after = scores[num_steps, "before"], scores[num_steps, "after"]
        difference = [a - b for a, b in zip(after, before, strict=True)]
        figures = {"before": before, "after": after, "difference": difference}
        result[JSON_NAMES[num_steps]] = {when: estimate(values).as_dict() for when, values in figures.items()}
    return result


def judge_drawings(count: int) -> Figures:
    """What perfect drawings get: as captioned, and with the two colours swapped."""
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(count)]
    prompts = [parse_prompt(caption(scene)) for scene in scenes]
    swapped = [scene.with_colors([each.color for each in scene.objects][::-1]) for scene in scenes]
    return {
        "drawings": {
            name: estimate([judge(draw(s), p) for s, p in zip(drawn, prompts, strict=True) if p]).as_dict()
            for name, drawn in (("right", scenes), ("colours swapped", swapped))
        }
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/demo"))
    parser.add_argument("--drawings", type=int, metavar="N")
    given = parser.parse_args()
    result = judge_drawings(given.drawings) if given.drawings else judge_run(given.run)
    for row, figures in result.items():
        print(row, "  ".join(f"{name} {f['mean']:.3f} ± {f['sem']:.3f}" for name, f in figures.items()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
