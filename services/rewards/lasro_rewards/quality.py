"""No-reference image quality by BRISQUE (Mittal et al. 2012, doi:10.1109/TIP.2012.2214050). Extra: `quality`.

BRISQUE is a distortion, about 0 to 100, lower is better. The reward is `1 - BRISQUE / 100`: about 0.9 for a sharp
photo, 0.2 for a blurred one. It is not clipped, so that no two images tie: it may pass 1 or fall below 0.

Code: brisque (Apache-2.0). Weights: the SVM of the LIVE laboratory inside the package, terms not stated there.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from lasro.reward_sdk import RejectedItem, reward
from lasro_rewards.packages import needed
from lasro_rewards.settings import settings

EXTRA = "quality"
MIN_SIDE_PX = 32  # its half-size copy must still hold the 7-pixel window a few times over


@reward
def quality(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float | RejectedItem]:
    """`1 - BRISQUE / 100`, higher is better; flat and tiny images have no statistics and are rejected."""
    return [_score(image) for image in images]


def _score(image: Image.Image) -> float | RejectedItem:
    pixels_HW3 = np.asarray(image.convert("RGB"))
    if min(image.size) < MIN_SIDE_PX:
        return RejectedItem(f"image: got {image.width} x {image.height} pixels, expected {MIN_SIDE_PX} a side or more")
    if (pixels_HW3 == pixels_HW3[0, 0]).all():
        return RejectedItem("image: got one flat colour, expected some structure to judge")
    distortion = float(_model().score(pixels_HW3))
    if not math.isfinite(distortion):
        return RejectedItem("image: BRISQUE is not defined on it (too little structure)")
    return 1 - distortion / 100


@cache
def _model() -> Any:
    needed("cv2", EXTRA).setNumThreads(settings().reward_threads)
    brisque = needed("brisque", EXTRA)

    class Patched(brisque.BRISQUE):
        """Its own scaling calls float() on arrays of one element, which NumPy 2.4 refuses."""

        def scale_features(self, features: Any) -> np.ndarray:
            low, high = (np.array(self.scale_params[name], np.float64) for name in ("min_", "max_"))
            values = np.array([np.asarray(feature, np.float64).item() for feature in features])
            return -1 + 2 * (values - low) / (high - low)

    return Patched(url=False)
