"""Find the objects on a plain background. Pure numpy and scipy.

Shape legend: H rows, W columns, 3 RGB or CIE Lab, P pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist

from lasro.demo.shapes import COLORS

FOREGROUND_DELTA_E = 8.0  # a pixel this far from the background may belong to an object
OBJECT_DELTA_E = 16.0  # an object's core is at least this far from it
MIN_AREA_PX = 24  # below this a component is clutter
BORDER_PX = 4  # width of the frame the background is read from
CORE_DEPTH_PX = 2  # colours nearer to the outline are mixed with the background by any VAE
MIN_PART = 0.15  # share of a component's core that makes a second colour a second object
MAX_MIXTURE_RGB = 45.0  # a pixel this near the line between background and object colour is a mixture of them
Float = NDArray[np.float32]
Mask = NDArray[np.bool_]
Box = tuple[slice, slice]

_LINEAR = np.where(
    np.arange(256) <= 0.04045 * 255, np.arange(256) / 255 / 12.92, ((np.arange(256) / 255 + 0.055) / 1.055) ** 2.4
).astype(np.float32)
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_TO_WHITE_XYZ = (_TO_XYZ / _TO_XYZ.sum(1, keepdims=True)).astype(np.float32)


def rgb_to_lab(rgb: NDArray[np.uint8]) -> Float:
    """sRGB uint8 [..., 3] to CIE Lab (D65), L in [0, 100]."""
    xyz = _LINEAR[rgb] @ _TO_WHITE_XYZ.T
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


PALETTE_LAB_C3 = rgb_to_lab(np.array(list(COLORS.values()), np.uint8))


@dataclass(frozen=True)
class Segment:
    """One object: how much of each pixel it covers, and the colours well inside it.

    `touching` says that it was cut from a component with another object; `edge_px` counts its pixels on the
    image's edge.
    """

    alpha_HW: Float
    core_lab_P3: Float
    touching: bool
    edge_px: int

    @property
    def area_px(self) -> float:
        return float(self.alpha_HW.sum())


@dataclass(frozen=True)
class Segmentation:
    """Objects by falling area. `clutter_px` counts foreground pixels in no object."""

    segments: tuple[Segment, ...]
    background_lab: Float
    background_spread: float
    clutter_px: float


def segment(rgb_HW3: NDArray[np.uint8]) -> Segmentation:
    """Split an image into its background (the median of the frame) and one segment per object."""
    lab = rgb_to_lab(rgb_HW3)
    frame = np.ones(lab.shape[:2], bool)
    frame[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] = False
    background_lab = np.median(lab[frame], 0)
    background_rgb = np.median(rgb_HW3[frame], 0).astype(np.float32)
    offset = lab - background_lab
    delta_e = np.sqrt(np.einsum("...c,...c->...", offset, offset))
    foreground = delta_e > FOREGROUND_DELTA_E
    edge = np.ones(foreground.shape, bool)
    edge[1:-1, 1:-1] = False
    labels = np.zeros(foreground.shape, np.int32)
    ndimage.label(foreground, output=labels)
    segments, clutter_px = [], 0.0
    for index, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        box = _padded((rows, columns), foreground.shape)
        mask = labels[box] == index
        area_px = float(mask.sum())
        if area_px < MIN_AREA_PX or delta_e[box][mask].max() < OBJECT_DELTA_E:
            clutter_px += area_px
            continue
        parts = _split_by_color(mask, rgb_HW3[box], lab[box], background_rgb)
        on_edge = edge[box]
        segments += [
            _segment(part, rgb_HW3[box], lab[box], background_rgb, len(parts) > 1, int((part & on_edge).sum()))
            for part in parts
        ]
    segments.sort(key=lambda found: -found.area_px)
    spread = float(delta_e[~foreground].mean()) if not foreground.all() else 0.0
    return Segmentation(tuple(segments), background_lab, spread, clutter_px)


def _padded(box: Box, size: tuple[int, int], margin_px: int = 2) -> Box:
    rows, columns = (
        slice(max(side.start - margin_px, 0), min(side.stop + margin_px, limit))
        for side, limit in zip(box, size, strict=True)
    )
    return rows, columns


def _split_by_color(mask: Mask, rgb: NDArray[np.uint8], lab: Float, background_rgb: Float) -> list[Mask]:
    """One mask per clearly different colour, so that touching objects come apart."""
    left = _core(mask).copy()
    min_part_px = max(MIN_PART * left.sum(), MIN_AREA_PX / 2)
    nearest = np.full(mask.shape, -1)
    nearest[left] = cdist(lab[left], PALETTE_LAB_C3).argmin(1)
    owner, num_parts = np.full(mask.shape, -1), 0
    while left.sum() >= min_part_px:
        color = np.bincount(nearest[left]).argmax()
        part = left & (nearest == color)
        if part.sum() < min_part_px:
            break
        owner[part] = num_parts
        num_parts += 1
        left &= ~part
        if left.sum() >= min_part_px:
            # The rim of an object is a mixture of its colour and the background's, and no object of its own.
            left &= _off_the_line(rgb, background_rgb, np.median(rgb[part], 0)) > MAX_MIXTURE_RGB
    if num_parts < 2:
        return [mask]
    rows_and_columns = ndimage.distance_transform_edt(owner < 0, return_distances=False, return_indices=True)
    owner = owner[tuple(rows_and_columns)]
    return [mask & (owner == part) for part in range(num_parts)]


def _off_the_line(rgb: NDArray[np.uint8], start: Float, end: Float) -> Float:
    """Distance of each pixel's colour from the segment between two colours, in RGB units."""
    alpha = _coverage(rgb, start, end)
    rest = rgb - start - alpha[..., None] * (end - start)
    return np.sqrt(np.einsum("...c,...c->...", rest, rest)).astype(np.float32)


def _coverage(rgb: NDArray[np.uint8], background: Float, color: Float) -> Float:
    """How far each pixel lies on the way from the background's colour to the object's, in [0, 1]."""
    contrast = color - background
    share = ((rgb - background) @ contrast) / max(float(contrast @ contrast), 1.0)
    return np.clip(share, 0, 1).astype(np.float32)


def _core(mask: Mask) -> Mask:
    """Pixels well inside the mask, as deep as leaves enough of them; the image's edge counts as outside."""
    core = mask
    for _ in range(CORE_DEPTH_PX):
        inner = np.zeros_like(core)
        inner[1:-1, 1:-1] = core[1:-1, 1:-1] & core[:-2, 1:-1] & core[2:, 1:-1] & core[1:-1, :-2] & core[1:-1, 2:]
        if inner.sum() < MIN_AREA_PX:
            break
        core = inner
    return core


def _segment(
    mask: Mask, rgb: NDArray[np.uint8], lab: Float, background_rgb: Float, touching: bool, edge_px: int
) -> Segment:
    """Refine a mask to soft coverage: where a pixel lies between the background's colour and the core's."""
    alpha = _coverage(rgb, background_rgb, np.median(rgb[_core(mask)], 0))
    alpha[~mask] = 0
    solid = alpha > 0.5
    return Segment(alpha, lab[_core(solid if solid.any() else mask)], touching, edge_px)
