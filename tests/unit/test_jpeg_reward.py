"""JPEG compressibility and incompressibility."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from lasro_rewards.jpeg import compressibility, incompressibility

BLANK = Image.new("RGB", (64, 64), "white")
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))


def test_value_is_the_file_size_in_kilobytes() -> None:
    """Guards unit, sign and quality: DDPO's reward is minus the kB of the JPEG at quality 95."""
    buffer = io.BytesIO()
    NOISE.save(buffer, "JPEG", quality=95)
    assert compressibility([NOISE], ["any"]) == [-len(buffer.getvalue()) / 1000]
    assert incompressibility([NOISE], ["any"]) == [len(buffer.getvalue()) / 1000]


def test_empty_images_win_compressibility() -> None:
    """Guards the direction."""
    blank, noise = compressibility([BLANK, NOISE], ["a", "b"])
    assert isinstance(blank, float)
    assert isinstance(noise, float)
    assert blank > noise


@pytest.mark.parametrize("mode", ["RGBA", "L", "P"])
def test_any_pillow_mode_is_scored(mode: str) -> None:
    """Guards against modes that JPEG cannot hold."""
    (score,) = compressibility([BLANK.convert(mode)], ["any"])
    assert score == pytest.approx(-0.8, abs=0.4)
