"""No-reference quality by the real BRISQUE."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lasro.reward_sdk import RejectedItem
from lasro_rewards.quality import quality


def test_flat_and_tiny_images_are_rejected() -> None:
    """Guards against NaN: a flat image has no statistics, and must not end as a number or fail the whole call."""
    flat, tiny = quality([Image.new("RGB", (64, 64), "red"), Image.new("RGB", (8, 64))], ["a", "b"])
    assert isinstance(flat, RejectedItem)
    assert isinstance(tiny, RejectedItem)
    assert "8 x 64" in tiny.reason


@pytest.mark.parametrize("size_px", [128, 256])
def test_sharp_beats_blurred_and_noisy(size_px: int) -> None:
    """Guards the sign (BRISQUE is a distortion) and its scaling, which NumPy 2.4 breaks in the package itself."""
    for name in ("cv2", "brisque"):
        pytest.importorskip(name)
    photo = Image.fromarray(pytest.importorskip("skimage.data").astronaut()).resize((size_px, size_px))
    noise = np.random.default_rng(0).normal(0, 40, (size_px, size_px, 3))
    noisy = Image.fromarray(np.clip(np.asarray(photo) + noise, 0, 255).astype(np.uint8))
    sharp, blurred, spoilt = quality([photo, photo.filter(ImageFilter.GaussianBlur(4)), noisy], ["any"] * 3)
    assert isinstance(sharp, float)
    assert isinstance(blurred, float)
    assert isinstance(spoilt, float)
    assert 0.6 < sharp < 1.1
    assert sharp > blurred + 0.2
    assert sharp > spoilt + 0.2
