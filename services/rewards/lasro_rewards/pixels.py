"""Images as CLIP and BLIP want them: float32, normalised by CLIP's mean and standard deviation.

Done with Pillow rather than the checkpoints' own processors, which resample differently with and without torchvision:
the same image would score differently on two machines.

Shape legend: B batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MEAN_C = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
STD_C = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)


def cropped(images: Sequence[Image.Image], size_px: int) -> NDArray[np.float32]:
    """[B, C, size, size]: the shorter side resized to `size_px`, the middle cut out (CLIP, PickScore, ImageReward)."""
    return _normalised([_center_crop(image.convert("RGB"), size_px) for image in images])


def squeezed(images: Sequence[Image.Image], size_px: int) -> NDArray[np.float32]:
    """[B, C, size, size], the sides' ratio not kept (BLIP)."""
    size = (size_px, size_px)
    return _normalised([image.convert("RGB").resize(size, Image.Resampling.BICUBIC) for image in images])


def padded(images: Sequence[Image.Image], size_px: int) -> NDArray[np.float32]:
    """[B, C, size, size]: the longer side resized to `size_px`, the rest black (HPSv2)."""
    return _normalised([_on_black(image.convert("RGB"), size_px) for image in images])


def _center_crop(image: Image.Image, size_px: int) -> Image.Image:
    short_px = min(image.size)
    width, height = (size_px * side // short_px for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size_px) / 2), round((height - size_px) / 2)
    return image.crop((left, top, left + size_px, top + size_px))


def _on_black(image: Image.Image, size_px: int) -> Image.Image:
    scale = size_px / max(image.size)
    width, height = (max(round(side * scale), 1) for side in image.size)
    canvas = Image.new("RGB", (size_px, size_px))
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    canvas.paste(resized, ((size_px - width) // 2, (size_px - height) // 2))
    return canvas


def _normalised(images: Sequence[Image.Image]) -> NDArray[np.float32]:
    pixels_BHWC = np.stack([np.asarray(image) for image in images]).astype(np.float32) / 255
    return np.ascontiguousarray(((pixels_BHWC - MEAN_C) / STD_C).transpose(0, 3, 1, 2), np.float32)
