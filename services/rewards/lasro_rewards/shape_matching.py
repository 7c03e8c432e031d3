"""Which of the known shapes a soft mask looks like, by overlap with rotated templates.

Shape legend: T templates (shapes x angles), G grid side, S shapes.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist

from lasro.demo.shapes import SHAPES, ObjectSpec, coverage

GRID = 48
EXTENT = 2.5  # half the grid in radii of gyration of the filled mask; a star's tips reach 2.2
ANGLES = np.linspace(-0.3, 0.3, 13)  # a little beyond what scenes use
EDGE_GAIN = 3.0  # sharpens blurred outlines about half coverage


def shape_overlaps(alpha_HW: NDArray[np.floating]) -> dict[str, float]:
    """Best intersection over union of the mask with each shape's templates, in [0, 1].

    Position and size are normalised away; rotation only as far as scenes rotate.
    """
    mask = _normalised(alpha_HW).reshape(1, -1)
    templates, areas_T = _templates()
    difference_T = cdist(mask, templates, "cityblock")[0]
    both_T = mask.sum() + areas_T
    overlaps_SA = ((both_T - difference_T) / (both_T + difference_T)).reshape(len(SHAPES), -1)
    return dict(zip(SHAPES, overlaps_SA.max(1).tolist(), strict=True))


@cache
def _templates() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    masks = [
        _normalised(coverage(ObjectSpec("black", shape, 0, 0, 0.6, float(angle)), 160))
        for shape in SHAPES
        for angle in ANGLES
    ]
    templates = np.stack([mask.reshape(-1) for mask in masks])
    return templates, templates.sum(1)


def _normalised(alpha_HW: NDArray[np.floating]) -> NDArray[np.float64]:
    """The mask on a G x G grid about its centre, scaled by its filled radius of gyration."""
    filled = ndimage.binary_fill_holes(alpha_HW > 0.5)
    if filled is None or not filled.any():
        return np.zeros((GRID, GRID))
    weight = np.where(filled, 1.0, alpha_HW)
    total = weight.sum()
    rows, columns = np.arange(alpha_HW.shape[0]), np.arange(alpha_HW.shape[1])
    center_y, center_x = weight.sum(1) @ rows / total, weight.sum(0) @ columns / total
    variance = (weight.sum(1) @ (rows - center_y) ** 2 + weight.sum(0) @ (columns - center_x) ** 2) / total
    step_px = 2 * EXTENT * np.sqrt(max(variance, 0.25)) / GRID
    offsets = (np.arange(GRID) - (GRID - 1) / 2) * step_px
    places = np.meshgrid(center_y + offsets, center_x + offsets, indexing="ij")
    grid = ndimage.map_coordinates(alpha_HW.astype(np.float64), places, order=1)
    return np.clip((grid - 0.5) * EDGE_GAIN + 0.5, 0, 1)
