"""The rewards of the frontier benchmark, on images made by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.frontier.pixels import Image_HW3
from benchmarks.frontier.rewards import DIFFERENTIABLE, REWARDS
from lasro.reward_function import RejectedItem, load_reward

RED, WHITE, BLACK, PINK = (255, 0, 0), (255, 255, 255), (0, 0, 0), (255, 200, 200)


def plain(colour: tuple[int, int, int], size: int = 16) -> Image_HW3:
    return np.full((size, size, 3), colour, np.uint8)


def with_box(rows: slice, columns: slice, colour: tuple[int, int, int] = RED, size: int = 16) -> Image_HW3:
    image = plain(WHITE, size)
    image[rows, columns] = colour
    return image


def half(left: tuple[int, int, int], right: tuple[int, int, int]) -> Image_HW3:
    image = plain(left)
    image[:, 8:] = right
    return image


def score(name: str, image: Image_HW3) -> float | RejectedItem:
    return REWARDS[name]([Image.fromarray(image)], ["a box"])[0]


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("brightness", plain(WHITE), 1.0),
        ("brightness", half(RED, BLACK), 0.299 / 2),
        ("soft_redness", plain(WHITE), 0.5),
        ("soft_redness", half(RED, BLACK), (1 / (1 + np.exp(-10)) + 0.5) / 2),
        ("smoothness", plain(RED), 0.0),
        ("smoothness", half(WHITE, BLACK), -1 / 15 / 2),  # one of 15 pairs beside each other, none below
        ("redness", half(RED, WHITE), 0.5),
        ("redness", plain(PINK), 0.0),
        ("redness", plain((200, 80, 40)), 1.0),  # hue 15 degrees, saturation 0.8
        ("redness", plain((200, 160, 40)), 0.0),  # hue 45 degrees
        ("redness", plain(BLACK), 0.0),
        ("symmetry", plain(RED), 1.0),
        ("symmetry", half(RED, WHITE), 0.0),
        ("symmetry", half((100, 100, 100), (124, 100, 100)), 1.0),
        ("symmetry", half((100, 100, 100), (125, 100, 100)), 0.0),
        ("symmetry", with_box(slice(0, 16), slice(0, 2)), 0.75),
        ("colourfulness", half(RED, WHITE), 2.0),
        ("colourfulness", half((0, 0, 0), (31, 31, 31)), 1.0),
        ("coverage", with_box(slice(4, 12), slice(4, 12)), 0.25),
        ("coverage", with_box(slice(4, 12), slice(4, 12), (223, 223, 223)), 0.0),
        ("coverage", with_box(slice(4, 12), slice(4, 12), (222, 222, 222)), 0.25),
        ("centredness", with_box(slice(4, 12), slice(4, 12)), 1.0),
        ("centredness", with_box(slice(0, 1), slice(0, 1)), 0.0),
        ("centredness", with_box(slice(7, 9), slice(0, 1)), 1 - 1 / np.sqrt(2)),
        ("centredness", plain(RED), 0.0),
        ("edge_count", half(WHITE, BLACK), 16 / 480),
        ("edge_count", half((100, 100, 100), (124, 124, 124)), 0.0),
        ("few_blobs", plain(WHITE), 0.0),
        ("few_blobs", with_box(slice(2, 9, 3), slice(4, 8)), 1.0),  # three rows
        ("few_blobs", with_box(slice(2, 12, 3), slice(4, 8)), 0.75),  # four
        ("few_blobs", with_box(slice(2, 32, 7), slice(2, 3), size=64), 0.0),  # specks of a pixel, of 4096
        ("few_blobs", with_box(slice(2, 32, 7), slice(2, 4), size=64), 0.6),  # five of two
        ("constant", plain(RED), 0.5),
        ("saturated", with_box(slice(0, 3), slice(0, 16), BLACK), 1.0),
        ("saturated", plain((51, 51, 51)), 0.25),
    ],
)
def test_a_reward_has_the_value_that_one_counts_by_hand(name: str, image: Image_HW3, expected: float) -> None:
    """Guards against thresholds, hues and neighbours that are off by one or counted twice."""
    assert score(name, image) == pytest.approx(expected, abs=1e-6)


def test_busier_images_are_larger_as_jpeg() -> None:
    """Guards against a size that is of the pixels, not of the file."""
    busy = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sizes = [score("jpeg_size", plain(RED, 64)), score("jpeg_size", busy)]
    assert all(isinstance(size, float) for size in sizes)
    assert 0.3 < sizes[0] < 1.0 < 3.0 < sizes[1] < 64 * 64 * 3 / 1000  # pyright: ignore[reportOperatorIssue]


def test_noise_and_failures_follow_from_the_pixels_alone() -> None:
    """Guards against noise that a surrogate could learn, and a failure that another try would mend."""
    images = [plain((i, 2 * i % 256, 7), 8) for i in range(200)]
    noise = [score("noise", image) for image in images]
    assert noise == [score("noise", image) for image in images]
    assert len(set(noise)) == 200
    assert np.mean([float(value) for value in noise if isinstance(value, float)]) == pytest.approx(0.5, abs=0.08)
    found = [score("failing_half", image) for image in images]
    assert [type(one) for one in found] == [type(score("failing_half", image)) for image in images]
    assert 70 < sum(isinstance(one, RejectedItem) for one in found) < 130
    scored = next(index for index, one in enumerate(found) if isinstance(one, float))
    assert found[scored] == pytest.approx(score("brightness", images[scored]), abs=1e-6)


@pytest.mark.parametrize("name", [one.name for one in DIFFERENTIABLE])
def test_rewards_with_a_gradient_have_the_right_one(name: str) -> None:
    """Guards against a limit that is trained on another reward than the one measured, or on none."""
    reward = next(one for one in DIFFERENTIABLE if one.name == name)
    images_BCHW = torch.rand(2, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images_BCHW.requires_grad_()

    def of_images(pixels_BCHW: torch.Tensor) -> torch.Tensor:
        return reward._differentiable(pixels_BCHW, ["a", "b"], [None, None])

    assert torch.autograd.gradcheck(of_images, images_BCHW)


def test_every_reward_is_served_under_its_name() -> None:
    """Guards against a run of one reward that is measured as another."""
    assert len(REWARDS) == 15
    for name, reward in REWARDS.items():
        assert load_reward(f"benchmarks.frontier.rewards:{name}") is reward
