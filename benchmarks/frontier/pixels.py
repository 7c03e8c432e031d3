"""What the rewards without a gradient count in an image, as pure functions.

Each takes uint8 [H, W, 3] RGB. Shape legend: H rows, W columns, 3 RGB.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Image_HW3 = NDArray[np.uint8]
Mask_HW = NDArray[np.bool_]
REC_601 = np.array([0.299, 0.587, 0.114])
TWIN_TOLERANCE = 24
"""Largest difference in any channel, 0 to 255, of two pixels of one colour."""
OBJECT_THRESHOLD = 32
"""Difference in some channel, 0 to 255, above which a pixel is no background."""
EDGE_THRESHOLD = 24
"""Difference in luminance, 0 to 255, above which two neighbours have an edge between them."""
DARK_BELOW = 128
"""Luminance, 0 to 255, below which a pixel is dark."""
LEAST_SHARE = 1 / 2048
"""Of the pixels, what a colour or a blob needs in order to count: 8 pixels of 128 x 128."""


def luminance(image: Image_HW3) -> NDArray[np.float64]:
    """Luminance [H, W], 0 to 255."""
    return image.astype(np.float64) @ REC_601


def red_share(image: Image_HW3) -> float:
    """Share of pixels whose hue is within 20 degrees of red and whose saturation (HSV) is 0.5 or more."""
    r, g, b = (image[..., channel].astype(np.int16) for channel in range(3))
    high, low = np.maximum(np.maximum(r, g), b), np.minimum(np.minimum(r, g), b)
    chroma = high - low
    hue_is_red = (r == high) & (3 * abs(g - b) <= chroma)  # the hue is 60 degrees times (g - b) / chroma
    return float((hue_is_red & (chroma > 0) & (2 * chroma >= high)).mean())


def twin_share(image: Image_HW3) -> float:
    """Share of pixels that have the colour of their twin across the vertical middle line."""
    wide = image.astype(np.int16)
    return float((abs(wide - wide[:, ::-1]).max(-1) <= TWIN_TOLERANCE).mean())


def count_colours(image: Image_HW3) -> int:
    """How many of the 512 colours of 3 bits a channel cover at least `LEAST_SHARE` of the pixels."""
    r, g, b = (image[..., channel].astype(np.int64) >> 5 for channel in range(3))
    counts = np.bincount((r << 6 | g << 3 | b).ravel(), minlength=512)
    return int((counts >= LEAST_SHARE * image[..., 0].size).sum())


def object_mask(image: Image_HW3) -> Mask_HW:
    """Pixels [H, W] that differ from the median colour of the border by more than `OBJECT_THRESHOLD`."""
    border = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    return abs(image - np.median(border, axis=0)).max(-1) > OBJECT_THRESHOLD


def centredness_of(mask: Mask_HW) -> float:
    """1 where the object's centre of mass is the image's middle, 0 where it is a corner or there is no object."""
    if not mask.any():
        return 0.0
    middle = (np.array(mask.shape) - 1) / 2
    away = (np.argwhere(mask).mean(0) - middle) / middle
    return float(1 - np.hypot(*away) / np.sqrt(2))


def edge_share(image: Image_HW3) -> float:
    """Share of horizontal and vertical neighbours that have an edge between them."""
    grey = luminance(image)
    steps = [abs(np.diff(grey, axis=axis)) > EDGE_THRESHOLD for axis in (0, 1)]
    return float(sum(step.sum() for step in steps) / sum(step.size for step in steps))


def count_blobs(mask: Mask_HW) -> int:
    """Separate areas of at least `LEAST_SHARE` of the pixels; pixels touch at their sides, not at their corners."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(np.asarray(labels).ravel())[1:]  # without the background, label 0
    return int((sizes >= LEAST_SHARE * mask.size).sum())


def hashed(image: Image_HW3, salt: str) -> float:
    """A number in [0, 1) that follows from the pixels, and says nothing about them."""
    digest = hashlib.sha256(salt.encode() + image.tobytes()).digest()
    return int.from_bytes(digest[:6], "little") / 2**48
