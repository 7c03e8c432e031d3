"""Sizes other than the UNet's own, and what an SDXL-class UNet is told of them, against stock diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from few_step_models import PROMPT, TURBO, difference, load, our_latents, stock_latents, stock_pipeline, with_scheduler
from tiny_model import write_tiny_model
from tiny_sd15 import write_tiny_sd15

from lasro.config import ModelSettings, SurrogateSettings
from lasro.errors import ModelError
from lasro.models.registry import load_model
from lasro.models.surrogate import build_surrogate, draw_augmentation, score_and_gradient

SIZES: list[dict[str, Any]] = [
    {"height": 8, "width": 24},
    {"height": 32},
    {"original_size": (64, 48), "crops_coords_top_left": (4, 2), "target_size": (40, 32)},
    {"width": 24, "original_size": (64, 48)},
]


@pytest.fixture(scope="module")
def turbo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made for 16 x 16 pixels."""
    place = tmp_path_factory.mktemp("turbo")
    return with_scheduler(write_tiny_model(place / "plain", guidance_embedding=False), place / "model", TURBO)


def ours(call: dict[str, Any]) -> dict[str, Any]:
    """Our settings for arguments of the stock pipeline."""
    return {"crops_top_left" if name.startswith("crops") else name: value for name, value in call.items()}


@pytest.mark.parametrize("call", SIZES, ids=str)
def test_latents_are_those_of_stock_diffusers(turbo: Path, call: dict[str, Any]) -> None:
    """Guards against height and width the other way round, and sizes that the UNet is told wrongly or not at all."""
    model, pipeline = load(turbo, **ours(call)), stock_pipeline(turbo)
    expected = stock_latents(pipeline, 2, **call)
    assert difference(our_latents(model, 2), expected) <= 1e-4
    if "original_size" in call:
        plain = {name: value for name, value in call.items() if name in ("height", "width")}
        assert (stock_latents(pipeline, 2, **plain) - expected).abs().max() > 1e-3, "the UNet does not look at it"


def test_images_and_scores_have_that_size(turbo: Path) -> None:
    """Guards against a surrogate or codec that takes the UNet's own size for granted."""
    model = load(turbo, height=8, width=24)
    assert model.latent_shape == (4, 4, 12)
    images = model.decode(our_latents(model, 1))
    assert images.shape == (1, 8, 24, 3)
    latents = model.encode(images)
    surrogate = build_surrogate(model, SurrogateSettings(head_channels=8))
    draws = draw_augmentation(latents.shape, 200, torch.Generator().manual_seed(0))
    scores_B, gradient_BCHW = score_and_gradient(surrogate, latents, *draws, model.embed([PROMPT]))
    assert scores_B.isfinite().all()
    assert gradient_BCHW.shape == latents.shape


def test_what_cannot_be_drawn_is_refused(turbo: Path, tmp_path: Path) -> None:
    """Guards against a size that is cut without a word, and a setting that no UNet of the family is told."""
    with pytest.raises(ModelError, match=r"width: got 19 pixels, expected a multiple of 2, such as 20"):
        load(turbo, width=19)
    sd15 = write_tiny_sd15(tmp_path / "sd15", guidance_embedding=False)
    with pytest.raises(ModelError, match=r"target_size: got \[16, 16\], but only an SDXL-class UNet is told such"):
        load(sd15, target_size=(16, 16))
    with pytest.raises(ModelError, match=r"unet: got cross_attention_dim 32, expected the 256 of text_encoder and"):
        load_model(ModelSettings(path="bundled", unet=str(sd15 / "unet"), device="cpu", guidance=1.0))
