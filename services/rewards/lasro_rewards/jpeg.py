"""JPEG compressibility and incompressibility, as in DDPO (Black et al. 2023, arXiv 2305.13301).

Both are measured in kB (1000 bytes) of the image as a JPEG of quality 95. Easy to please and easy to hack:
compressibility ends in blank images, so a run needs a guard reward beside it.

Code: Pillow (MIT-CMU). No weights, no extra.
"""

from __future__ import annotations

import io

from PIL import Image

from lasro.reward_sdk import reward

QUALITY = 95


def jpeg_size_kb(image: Image.Image) -> float:
    """Size of an image as a JPEG, in kB."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=QUALITY)
    return buffer.tell() / 1000


@reward
def compressibility(images: list[Image.Image], prompts: list[str], metadata: list[object]) -> list[float]:
    """Minus the JPEG size in kB: the emptier the image, the higher."""
    return [-jpeg_size_kb(image) for image in images]


@reward
def incompressibility(images: list[Image.Image], prompts: list[str], metadata: list[object]) -> list[float]:
    """The JPEG size in kB: the busier the image, the higher."""
    return [jpeg_size_kb(image) for image in images]
