"""Batches of shape scenes and emoji, drawn on the device.

The shapes are those of `lasro.demo.shapes`: its signed distances are sampled once on a fine grid, and drawing looks
them up. So prompts, detector and training data cannot drift apart.

Shape legend: B images, N scenes or emoji, O objects of a scene, S shapes, H, W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lasro.demo.shapes import BACKGROUNDS, COLORS, EDGE_SHARPNESS, SHAPES, SIGNED_DISTANCES, Scene

FIELD_PX, FIELD_EXTENT = 768, 1.75  # the fields span [-1.75, 1.75], in sizes of an object; beyond is outside
EMOJI_SHRINK = (1.05, 1.45)  # an emoji fills the image's side divided by this
EMOJI_SHIFT = 0.12  # of half the image, at most
MAX_OBJECTS = 2


class Drawn(NamedTuple):
    """Images [B, 3, H, W] in [-1, 1], and how much of each pixel objects cover [B, 1, H, W], in [0, 1]."""

    images: Tensor
    coverage: Tensor


class SceneRows(NamedTuple):
    """Scenes as numbers. An object: x, y, size, angle, shape's number, red, green, blue (in [-1, 1]); size 0: none."""

    objects_NO8: Tensor
    backgrounds_N3: Tensor

    def pick(self, index_B: Tensor) -> SceneRows:
        return SceneRows(self.objects_NO8[index_B], self.backgrounds_N3[index_B])


class EmojiRows(NamedTuple):
    """Emoji drawn on white, uint8 [N, 3, H, W], and how much of each pixel they cover, uint8 [N, 1, H, W]."""

    images_N3HW: Tensor
    coverage_N1HW: Tensor


def unit_rgb(color: Sequence[int]) -> list[float]:
    """8-bit RGB to [-1, 1]."""
    return [channel / 127.5 - 1 for channel in color]


def background_colors(names: Sequence[str], device: torch.device) -> Tensor:
    """[N, 3] in [-1, 1]."""
    return torch.tensor([unit_rgb(BACKGROUNDS[name]) for name in names], device=device)


def scene_rows(scenes: Sequence[Scene], device: torch.device) -> SceneRows:
    objects = np.zeros((len(scenes), MAX_OBJECTS, 8), np.float32)
    for row, scene in zip(objects, scenes, strict=True):
        for cell, spec in zip(row, scene.objects, strict=False):
            shape = SHAPES.index(spec.shape)
            cell[:] = (spec.x, spec.y, spec.size, spec.angle, shape, *unit_rgb(COLORS[spec.color]))
    backgrounds = background_colors([scene.background for scene in scenes], device)
    return SceneRows(torch.from_numpy(objects).to(device), backgrounds)


def distance_fields(device: torch.device) -> Tensor:
    """Signed distances of every shape of size 1, float32 [1, 1, S, FIELD_PX, FIELD_PX]."""
    axis = np.linspace(-FIELD_EXTENT, FIELD_EXTENT, FIELD_PX)
    x, y = np.meshgrid(axis, axis)
    fields = np.stack([distance(x, y) for distance in SIGNED_DISTANCES.values()])
    return torch.from_numpy(fields.astype(np.float32))[None, None].to(device)


def draw_scenes(rows: SceneRows, fields: Tensor, size_px: int) -> Drawn:
    """The scenes, later objects over earlier ones, as `lasro.demo.shapes.draw` draws them."""
    device = rows.objects_NO8.device
    images = rows.backgrounds_N3[:, :, None, None].expand(-1, -1, size_px, size_px)
    uncovered = torch.ones(len(images), 1, size_px, size_px, device=device)
    axis = (torch.arange(size_px, device=device) + 0.5) / size_px * 2 - 1
    for objects_B8 in rows.objects_NO8.unbind(1):
        alpha = _coverage(objects_B8, fields, axis)
        images = images * (1 - alpha) + objects_B8[:, 5:, None, None] * alpha
        uncovered = uncovered * (1 - alpha)
    return Drawn(images, 1 - uncovered)


def _coverage(objects_B8: Tensor, fields: Tensor, axis_W: Tensor) -> Tensor:
    """[B, 1, H, W]; nothing for an object of size 0."""
    x_B11, y_B11, size_B11, angle_B11, shape_B11 = objects_B8[:, :5, None, None].unbind(1)
    safe_B11 = size_B11.clamp(min=1e-3)
    x, y = axis_W[None, None, :] - x_B11, axis_W[None, :, None] - y_B11
    cos, sin = angle_B11.cos(), angle_B11.sin()
    u, v = (x * cos + y * sin) / safe_B11, (y * cos - x * sin) / safe_B11
    layer = (shape_B11 / (len(SHAPES) - 1) * 2 - 1).expand_as(u)
    places = torch.stack([u / FIELD_EXTENT, v / FIELD_EXTENT, layer], -1)[None]
    distance = F.grid_sample(fields, places, padding_mode="border", align_corners=True)[0, 0]
    distance_px = distance * safe_B11 * len(axis_W) / 2
    return (torch.sigmoid(-distance_px * EDGE_SHARPNESS) * (size_B11 > 0))[:, None]


def draw_emoji(
    rows: EmojiRows, index_B: Tensor, backgrounds_B3: Tensor, size_px: int, generator: torch.Generator
) -> Drawn:
    """The emoji at random places and sizes on plain backgrounds."""
    count, device = len(index_B), index_B.device
    least, most = EMOJI_SHRINK
    shrink = torch.rand(count, generator=generator, device=device) * (most - least) + least
    theta = torch.zeros(count, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = shrink
    theta[:, :, 2] = (torch.rand(count, 2, generator=generator, device=device) * 2 - 1) * EMOJI_SHIFT
    places = F.affine_grid(theta, [count, 4, size_px, size_px], align_corners=False)
    darkness = 1 - rows.images_N3HW[index_B].float() / 255  # 0 is white, so what lies beyond the emoji is white too
    covered = rows.coverage_N1HW[index_B].float() / 255
    sampled = F.grid_sample(torch.cat([darkness, covered], 1), places, align_corners=False)
    on_white, alpha = 1 - 2 * sampled[:, :3], sampled[:, 3:]
    return Drawn((on_white + (1 - alpha) * (backgrounds_B3[:, :, None, None] - 1)).clamp(-1, 1), alpha)
