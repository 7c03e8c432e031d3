"""Text rendering: does the image show the wanted text? Read by RapidOCR. Extra: `ocr`.

The score is the normalised Levenshtein similarity of the text read and the text wanted, in [0, 1]: 1 for the wanted
text and nothing else, 0 where nothing fits. Letter case and spaces do not count, since the recogniser drops spaces.
Text beside the wanted one lowers the score, so a page full of words buys nothing.

Code and weights: rapidocr with PP-OCRv6 detection and recognition, Apache-2.0, inside the package.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from lasro.reward_sdk import RejectedItem, reward
from lasro_rewards.packages import needed
from lasro_rewards.settings import settings

EXTRA = "ocr"
MIN_SIDE_PX = 320  # smaller images are enlarged before text is looked for; 128-pixel ones are not read otherwise
# An apostrophe inside a word is none of these: single quotes count only where a word begins and ends.
QUOTED = re.compile(r"\"([^\"]+)\"|“([^”]+)”|(?<!\w)'([^']+)'(?!\w)|‘([^’]+)’")


@reward
def text_rendering(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float | RejectedItem]:
    """Similarity of the text read to `metadata["text"]`, else to the quoted text in the prompt, in [0, 1]."""
    rows = zip(images, prompts, metadata, strict=True)
    return [_score(image, wanted_text(prompt, entry), prompt) for image, prompt, entry in rows]


def wanted_text(prompt: str, metadata: Any) -> str | None:
    """`metadata["text"]` if it is there, else everything quoted in the prompt, else None."""
    given = metadata.get("text") if isinstance(metadata, dict) else None
    text = given if isinstance(given, str) else " ".join("".join(groups) for groups in QUOTED.findall(prompt))
    return text if squeezed(text) else None  # nothing wanted would be rendered perfectly by an empty image


def squeezed(text: str) -> str:
    """What is compared: no case, no white space."""
    return "".join(text.casefold().split())


def read_text(image: Image.Image) -> str:
    """All text of an image, top to bottom; empty where there is none."""
    bgr_HW3 = np.ascontiguousarray(np.asarray(image.convert("RGB"))[..., ::-1])
    return " ".join(_reader()(bgr_HW3).txts or ())


def _score(image: Image.Image, wanted: str | None, prompt: str) -> float | RejectedItem:
    if wanted is None:
        return RejectedItem(f'prompt: got {prompt[:80]!r}, expected quoted text in it or metadata {{"text": ...}}')
    levenshtein = needed("rapidfuzz.distance", EXTRA).Levenshtein
    return float(levenshtein.normalized_similarity(squeezed(read_text(image)), squeezed(wanted)))


@cache
def _reader() -> Any:
    """One object for one way of calling it: RapidOCR keeps the arguments of a call for later calls."""
    return needed("rapidocr", EXTRA).RapidOCR(
        params={
            "Global.use_cls": False,
            "Global.log_level": "error",
            "Det.limit_side_len": MIN_SIDE_PX,
            "Det.limit_type": "min",
            "EngineConfig.onnxruntime.intra_op_num_threads": settings().reward_threads,
        }
    )
