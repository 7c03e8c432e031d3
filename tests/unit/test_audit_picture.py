"""audit.png: the right image in the right place, whatever the prompts and findings are."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lasro.images import png_bytes
from lasro.training.prompts import Prompt
from lasro.training.sampling import Group
from lasro_client.audit.picture import EDGE_PX, GAP_PX, LINE_PX, MARGIN_PX, draw_picture, extremes

NAN = float("nan")
SUMMARY = {
    "reward": "r", "version": 1, "trainable": "doubtful",
    "findings": [{"name": "noise", "level": "doubtful", "says": "It is noisy. " * 60, "do": "no"}],
    "spread": {"as_ranked": {"best_pair_accuracy": None}}, "ties": {"tied_share": None},
}  # fmt: skip


def group(prompt: str, shades: list[int], size: tuple[int, int] = (16, 16)) -> Group:
    """Two seeds of one step, then two of two steps, each of one shade of red."""
    images = [png_bytes(np.full((*size, 3), (shade, 0, 0), np.uint8)) for shade in shades]
    return Group(Prompt(prompt), torch.zeros(4, 4, 2, 2), [1, 1, 2, 2], [False] * 4, images)


def test_extremes_by_hand():
    """The best image must be so by the mean of what was scored, and one without any score be neither."""
    assert extremes(np.array([[0.5, 0.7], [NAN, NAN], [0.1, NAN], [0.65, 0.65]])) == [(2, 0.1), (3, 0.65)]
    assert extremes(np.full((3, 2), NAN)) == [None, None]
    assert extremes(np.full((3, 2), 0.1)) == [(0, 0.1), (2, pytest.approx(0.1))], "equal ones are shown as different"


def test_every_image_is_where_its_label_says():
    """Worst and best swapped, stages mixed up, or images of another prompt; failures hide behind grey."""
    rewards_PGKR = np.array([[[[0.9, 0.9], [0.2, 0.2]], [[0.1, 0.1], [0.3, 0.5]]], np.full((2, 2, 2), NAN)])
    groups = [group("a red star", [40, 80, 120, 160]), group("語" * 400, [1, 2, 3, 4], (16, 8))]
    picture = Image.open(io.BytesIO(draw_picture(SUMMARY, groups, rewards_PGKR))).convert("RGB")
    row_px = 2 * LINE_PX + EDGE_PX + LINE_PX + GAP_PX
    last_px = picture.height - MARGIN_PX - GAP_PX - LINE_PX - EDGE_PX // 2
    lefts = [MARGIN_PX + column * (EDGE_PX + GAP_PX) + EDGE_PX // 4 for column in range(4)]
    assert [picture.getpixel((x, last_px - row_px)) for x in lefts] == [(shade, 0, 0) for shade in (80, 40, 120, 160)]
    assert [picture.getpixel((x, last_px)) for x in lefts] == [(238, 238, 238)] * 4
