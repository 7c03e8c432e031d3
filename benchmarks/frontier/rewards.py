"""Rewards that nobody tuned anything for, served as `benchmarks.frontier.rewards:NAME`.

Three have a gradient, so that the limit of what a run can gain is known; eight count pixels; four are broken by intent.

Shape legend: B images, C = 3 channels, H, W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.frontier import pixels
from benchmarks.frontier.pixels import Image_HW3
from lasro.reward_sdk import RejectedItem, Reward, reward
from lasro.torch_reward import torch_reward

REDNESS_SHARPNESS = 10.0
"""Of the sigmoid: red that is a tenth of the range above green and blue counts 0.73."""
JPEG_QUALITY = 75
WANTED_BLOBS = 3
SATURATED_FROM = 0.8
REC_601 = torch.tensor([0.299, 0.587, 0.114])


# --- with a gradient ---------------------------------------------------------------------------------------------


@torch_reward
def brightness(images_BCHW: Tensor, prompts: list[str], metadata: list[Any]) -> Tensor:
    """Mean luminance, 0 to 1."""
    weights = REC_601.to(images_BCHW)
    return (images_BCHW * weights[:, None, None]).sum(1).mean((1, 2))


@torch_reward
def soft_redness(images_BCHW: Tensor, prompts: list[str], metadata: list[Any]) -> Tensor:
    """Mean over pixels of the sigmoid of red minus the larger of green and blue, 0 to 1; 0.5 for grey."""
    red, others = images_BCHW[:, 0], images_BCHW[:, 1:].amax(1)
    return torch.sigmoid(REDNESS_SHARPNESS * (red - others)).mean((1, 2))


@torch_reward
def smoothness(images_BCHW: Tensor, prompts: list[str], metadata: list[Any]) -> Tensor:
    """Minus the mean absolute difference of horizontal and vertical neighbours; -1 to 0."""
    across, down = images_BCHW.diff(dim=3).abs(), images_BCHW.diff(dim=2).abs()
    return -(across.mean((1, 2, 3)) + down.mean((1, 2, 3))) / 2


# --- without -----------------------------------------------------------------------------------------------------


def _counting(measure: Callable[[Image_HW3], float | RejectedItem]) -> Reward:
    def rewards(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float | RejectedItem]:
        return [measure(np.asarray(image.convert("RGB"))) for image in images]

    rewards.__name__, rewards.__doc__ = measure.__name__, measure.__doc__
    return reward(rewards)


@_counting
def redness(image: Image_HW3) -> float:
    """Share of pixels that are red by hue and saturation, 0 to 1."""
    return pixels.red_share(image)


@_counting
def symmetry(image: Image_HW3) -> float:
    """Share of pixels that have the colour of their twin across the middle, 0 to 1."""
    return pixels.twin_share(image)


@_counting
def colourfulness(image: Image_HW3) -> float:
    """How many colours of 3 bits a channel the image has, 1 to 512."""
    return float(pixels.count_colours(image))


@_counting
def coverage(image: Image_HW3) -> float:
    """Share of pixels that are not of the border's colour, 0 to 1."""
    return float(pixels.object_mask(image).mean())


@_counting
def centredness(image: Image_HW3) -> float:
    """How near the centre of mass of what is not of the border's colour is to the middle, 0 to 1."""
    return pixels.centredness_of(pixels.object_mask(image))


@_counting
def jpeg_size(image: Image_HW3) -> float:
    """Size as a JPEG of quality 75, in kB (1000 bytes)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.tell() / 1000


@_counting
def edge_count(image: Image_HW3) -> float:
    """Share of neighbours with an edge between them, 0 to 1."""
    return pixels.edge_share(image)


@_counting
def few_blobs(image: Image_HW3) -> float:
    """1 for one to three separate dark areas, 3 / n for n of them, 0 for none."""
    blobs = pixels.count_blobs(pixels.luminance(image) < pixels.DARK_BELOW)
    return min(1.0, WANTED_BLOBS / blobs) if blobs else 0.0


# --- broken on purpose -------------------------------------------------------------------------------------------


@_counting
def noise(image: Image_HW3) -> float:
    """A number in [0, 1) by the hash of the pixels: the same for the same image, and nothing to learn."""
    return pixels.hashed(image, "noise")


@_counting
def constant(image: Image_HW3) -> float:
    """0.5 for every image."""
    return 0.5


@_counting
def saturated(image: Image_HW3) -> float:
    """1 from a mean luminance of `SATURATED_FROM` on, as most of the bundled model's images have it; less below."""
    return min(1.0, float(pixels.luminance(image).mean()) / 255 / SATURATED_FROM)


@_counting
def failing_half(image: Image_HW3) -> float | RejectedItem:
    """The mean luminance, 0 to 1, of half of the images; the others, by the hash of their pixels, are rejected."""
    if pixels.hashed(image, "failing") < 0.5:
        return RejectedItem("fails for half of the images")
    return float(pixels.luminance(image).mean()) / 255


DIFFERENTIABLE = (brightness, soft_redness, smoothness)
COUNTING = (redness, symmetry, colourfulness, coverage, centredness, jpeg_size, edge_count, few_blobs)
BROKEN = (noise, constant, saturated, failing_half)
REWARDS: dict[str, Reward] = {one.name: one for one in (*DIFFERENTIABLE, *COUNTING, *BROKEN)}
