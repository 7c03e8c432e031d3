"""Does each named object have its named colour and shape? A detector for the bundled model's shape prompts.

After the Attribute Binding Score of T2I-CompBench (Huang et al. 2023, arXiv 2307.06350): each noun phrase gets a
probability, and the image the product over phrases. Here the probability comes from segmenting the image instead
of from asking BLIP-VQA, and factors for clutter and background keep a generator from buying score with rubbish.

Shape legend: H rows, W columns, 3 RGB or CIE Lab, P pixels, C palette colours, N noun phrases, M segments.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from lasro.demo.shapes import BACKGROUNDS, COLORS, SHAPES, NounPhrase, ShapePrompt, parse_prompt
from lasro.reward_sdk import RejectedItem, reward
from lasro_rewards.segmentation import PALETTE_LAB_C3, Segment, Segmentation, rgb_to_lab, segment
from lasro_rewards.shape_matching import shape_overlaps

SIZE_PX = 128
FLOOR = 0.1  # of a colour or shape factor: an object with one of the two right still beats none at all
MISSING = 0.02  # factor of a phrase for which no object is left
COLOR_SIGMA = 12.0  # Lab units: how far a colour strays before its neighbours compete
NO_COLOR_DELTA_E = 36.0  # a pixel farther than this from every palette colour counts as none of them
COLOR_FADE_DELTA_E = 40.0
OVERLAP_TEMPERATURE = 0.04  # perfect drawings lead the second-best shape by 0.13 or more
RAGGED_OVERLAP, CLEAN_OVERLAP = 0.65, 0.95  # outline quality runs from 0 to 1 between these
SMALL_PX = (80.0, 300.0)  # plausibility of an object's area runs from 0 to 1 between these,
LARGE_PX = {1: (5400.0, 9000.0), 2: (2600.0, 5000.0)}  # and back to 0 between these, by number of phrases
CUT_OFF_LOSS = 0.5  # for an object whose contact with the image's edge is as long as its own side
TOUCHING_FACTOR = 0.8
CLUTTER_SCALE = 0.15  # clutter relative to the named objects' area at which the score falls to 1/e
BACKGROUND_FADE_DELTA_E, BACKGROUND_FLOOR = 12.0, 0.6


def color_probabilities(core_lab_P3: NDArray[np.floating]) -> dict[str, float]:
    """How much of an object is each palette colour, in [0, 1] summing to at most 1; faint or odd tints lose."""
    delta_e_PC = cdist(core_lab_P3, PALETTE_LAB_C3)
    weights_PC = np.exp(-0.5 * (delta_e_PC / COLOR_SIGMA) ** 2)
    none = np.exp(-0.5 * (NO_COLOR_DELTA_E / COLOR_SIGMA) ** 2)
    shares_C = (weights_PC / (weights_PC.sum(1, keepdims=True) + none)).mean(0)
    fade_C = np.exp(-((delta_e_PC.mean(0) / COLOR_FADE_DELTA_E) ** 2))
    return dict(zip(COLORS, (shares_C * fade_C).tolist(), strict=True))


def shape_probabilities(alpha_HW: NDArray[np.floating]) -> dict[str, float]:
    """How much a mask looks like each shape, in [0, 1] summing to at most 1; ragged outlines lose."""
    overlaps = shape_overlaps(alpha_HW)
    values = np.array([overlaps[shape] for shape in SHAPES])
    likelihoods = np.exp((values - values.max()) / OVERLAP_TEMPERATURE)
    quality = np.clip((values - RAGGED_OVERLAP) / (CLEAN_OVERLAP - RAGGED_OVERLAP), 0, 1)
    return dict(zip(SHAPES, (likelihoods / likelihoods.sum() * quality).tolist(), strict=True))


def binding_score(rgb_HW3: NDArray[np.uint8], prompt: ShapePrompt) -> float:
    """Attribute binding of a 128 x 128 RGB image, in [0, 1]. Relations are not judged."""
    found = segment(rgb_HW3)
    score, named_px = _best_assignment(prompt.phrases, found.segments)
    if named_px == 0:
        return 0.0
    clutter_px = sum(each.area_px for each in found.segments) - named_px + found.clutter_px
    clutter = max(0.0, clutter_px / named_px - 0.02)
    return score * float(np.exp(-clutter / CLUTTER_SCALE)) * _background_factor(found, prompt)


def _best_assignment(phrases: tuple[NounPhrase, ...], segments: tuple[Segment, ...]) -> tuple[float, float]:
    """The product over phrases under the best one-to-one assignment, and the area of the objects used."""
    if not segments:
        return 0.0, 0.0
    candidates = segments[: len(phrases) + 2]
    scores_NM = np.array([_phrase_scores(phrases, each) for each in candidates]).T
    rows, columns = linear_sum_assignment(np.log(scores_NM), maximize=True)
    product = float(scores_NM[rows, columns].prod()) * MISSING ** (len(phrases) - len(rows))
    return product, sum(candidates[column].area_px for column in columns)


def _phrase_scores(phrases: tuple[NounPhrase, ...], found: Segment) -> list[float]:
    colors, shapes = color_probabilities(found.core_lab_P3), shape_probabilities(found.alpha_HW)
    placed = FLOOR + (1 - FLOOR) * _placement_factor(found, len(phrases))
    return [
        placed * (FLOOR + (1 - FLOOR) * colors[each.color]) * (FLOOR + (1 - FLOOR) * shapes[each.shape])
        for each in phrases
    ]


def _placement_factor(found: Segment, num_phrases: int) -> float:
    """1 for an object of plausible size that stands free; less where it is cut off or grown into another."""
    plausible = _ramp(found.area_px, *SMALL_PX) * (1 - _ramp(found.area_px, *LARGE_PX[num_phrases]))
    cut_off = min(found.edge_px / max(found.area_px, 1.0) ** 0.5, 1.0)
    return plausible * (1 - CUT_OFF_LOSS * cut_off) * (TOUCHING_FACTOR if found.touching else 1.0)


def _ramp(value: float, low: float, high: float) -> float:
    return min(max((value - low) / (high - low), 0.0), 1.0)


def _background_factor(found: Segmentation, prompt: ShapePrompt) -> float:
    asked = rgb_to_lab(np.array(BACKGROUNDS[prompt.background or "white"], np.uint8))
    delta_e = float(np.linalg.norm(found.background_lab - asked)) + max(0.0, found.background_spread - 1)
    return BACKGROUND_FLOOR + (1 - BACKGROUND_FLOOR) * float(np.exp(-((delta_e / BACKGROUND_FADE_DELTA_E) ** 2)))


def prepared(image: Image.Image) -> NDArray[np.uint8]:
    """RGB [128, 128, 3]; other sizes are resampled."""
    image = image.convert("RGB")
    if image.size != (SIZE_PX, SIZE_PX):
        image = image.resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS)
    return np.asarray(image)


@reward
def attribute_binding(
    images: list[Image.Image], prompts: list[str], metadata: list[object]
) -> list[float | RejectedItem]:
    """Attribute binding in [0, 1]; prompts outside the shape grammar are rejected."""
    return [_score(image, prompt) for image, prompt in zip(images, prompts, strict=True)]


def _score(image: Image.Image, text: str) -> float | RejectedItem:
    prompt = parse_prompt(text)
    if prompt is None:
        return RejectedItem(
            f"prompt: got {text[:80]!r}, expected a shape prompt such as "
            "'a red circle left of a blue square on a cream background'"
        )
    return binding_score(prepared(image), prompt)
