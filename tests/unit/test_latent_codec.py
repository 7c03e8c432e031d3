"""Images by the VAE as stock diffusers makes them, in a precision that it bears; what is not finite is no image."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from changed_model import VAE_WEIGHTS, change_json, change_weights, copy_model
from tiny_sd15 import write_tiny_sd15

from lasro.config import ModelSettings, SamplingSettings
from lasro.errors import NonFiniteError, WireError
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro.training.prompts import Prompt
from lasro.training.sampling import sample_groups

SETTINGS: list[dict[str, Any]] = [
    {"autocast": "float16"},
    {"dtype": "float16"},
    {"dtype": "float16", "autocast": "float16"},
    {"dtype": "bfloat16", "autocast": "float16"},
]
STATISTICS = {"latents_mean": [0.3, -0.2, 0.1, 0.5], "latents_std": [1.5, 0.7, 1.2, 0.9]}


def load(path: Path, **settings: Any) -> GeneratorModel:
    return load_model(ModelSettings(path=str(path), device="cpu", **settings))


@pytest.fixture(scope="module")
def overflowing(one_level_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose VAE has activations over 65,504 in both directions, as SDXL's own has, and says force_upcast."""
    folder = copy_model(one_level_model_path, tmp_path_factory.mktemp("overflowing") / "model")
    change_json(folder / "vae/config.json", force_upcast=True)
    factors = {"encoder.conv_in.weight": 3e5, "decoder.conv_in.weight": 3e4}
    change_weights(folder / VAE_WEIGHTS, lambda s: {name: t * factors.get(name, 1) for name, t in s.items()})
    return folder


@pytest.fixture(scope="module")
def careless(overflowing: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without force_upcast."""
    folder = copy_model(overflowing, tmp_path_factory.mktemp("careless") / "model")
    change_json(folder / "vae/config.json", force_upcast=False)
    return folder


def latents(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def pictures(count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_vae_that_needs_float32_never_computes_in_float16(overflowing: Path, settings: dict[str, Any]) -> None:
    """Bug: autocast = "float16" decoded SDXL's VAE in float16: black images, which were scored as samples."""
    exact, model = load(overflowing), load(overflowing, **settings)
    for mixed in (False, True):
        assert np.abs(model.decode(latents(), mixed).astype(int) - exact.decode(latents()).astype(int)).mean() < 3
    expected = exact.encode(pictures())
    assert (model.encode(pictures()) - expected).abs().mean() < 0.02 * expected.abs().mean()


def test_pixels_that_are_not_finite_are_an_error(careless: Path) -> None:
    """Bug: NaN became black pixels, and black images went to the reward like any other."""
    half, mixed = load(careless, dtype="float16"), load(careless, autocast="float16")
    with pytest.raises(NonFiniteError, match=r"^pixels: got NaN or infinity from the VAE in float16.*set model\.dtype"):
        half.decode(latents())
    with pytest.raises(NonFiniteError, match=r"^pixels: .* in float16, .*model\.autocast"):
        sample_groups(mixed, [Prompt(text="a cat")], SamplingSettings(prompts_per_round=1, seeds_per_prompt=1), 0)
    with pytest.raises(NonFiniteError, match=r"^pixels: "):
        half.decode_pixels(latents())
    with pytest.raises(NonFiniteError, match=r"^latents of images: got NaN or infinity"):
        half.encode(pictures())
    with pytest.raises(NonFiniteError, match=r"^latents: got NaN.*model or adapter is broken"):
        mixed.decode(latents() * float("nan"))
    assert mixed.decode(latents()).std() > 0


def test_images_of_another_kind_are_refused(one_level_model_path: Path) -> None:
    """Guards against images of 0 to 1 taken for images of 0 to 255."""
    with pytest.raises(WireError, match="images: got float64, expected uint8"):
        load(one_level_model_path).encode(pictures() / 255.0)


def test_a_batch_of_one_gives_the_same_images(one_level_model_path: Path) -> None:
    """Guards against model.max_batch that changes more than what is held in memory at once."""
    whole, single = load(one_level_model_path), load(one_level_model_path, max_batch=1)
    assert np.abs(whole.decode(latents(5)).astype(int) - single.decode(latents(5)).astype(int)).max() <= 1
    torch.testing.assert_close(whole.encode(pictures(5)), single.encode(pictures(5)))


@pytest.mark.parametrize("family", ["StableDiffusionXL", "StableDiffusion"])
def test_statistics_of_the_latents_are_applied_as_stock_does(
    one_level_model_path: Path, tmp_path: Path, family: str
) -> None:
    """Bug: latents_mean and latents_std were left out: images up to 65 of 255 off. Stock applies them to SDXL alone,
    and shift_factor to neither."""
    model = one_level_model_path if family == "StableDiffusionXL" else write_tiny_sd15(tmp_path / "sd15", False)
    folder = copy_model(model, tmp_path / "model")
    change_json(folder / "vae/config.json", **STATISTICS, shift_factor=0.1)
    change_weights(folder / VAE_WEIGHTS, _without_spread)
    ours = load(folder, guidance=1.0)
    diffusers: Any = importlib.import_module("diffusers")
    options = {} if family == "StableDiffusionXL" else {"safety_checker": None}
    stock = getattr(diffusers, f"{family}Pipeline").from_pretrained(folder, dtype=torch.float32, **options)
    stock.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "guidance_scale": 1.0, "generator": torch.Generator().manual_seed(0)}
    drawn = stock("a cat", output_type="latent", **call).images
    call["generator"] = torch.Generator().manual_seed(0)
    expected = stock("a cat", output_type="np", **call).images
    assert np.abs(ours.decode(drawn) / 255 - expected).max() <= 1 / 255
    back = getattr(diffusers, f"{family}Img2ImgPipeline")(**stock.components, **_unchecked(family))
    pixels = torch.from_numpy(pictures()).permute(0, 3, 1, 2) / 127.5 - 1
    noisy = {"timestep": torch.tensor([0]), "batch_size": 2, "num_images_per_prompt": 1, "dtype": torch.float32}
    z = back.prepare_latents(pixels, device="cpu", **noisy, **_clean(family, back))
    torch.testing.assert_close(ours.encode(pictures()), z, rtol=1e-4, atol=1e-4)


def _without_spread(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Stock draws from the encoder's distribution, we take its middle: the same where it has no spread."""
    weight, bias = state["quant_conv.weight"].clone(), state["quant_conv.bias"].clone()
    weight[4:], bias[4:] = 0, -100
    return state | {"quant_conv.weight": weight, "quant_conv.bias": bias}


def _unchecked(family: str) -> dict[str, Any]:
    return {} if family == "StableDiffusionXL" else {"requires_safety_checker": False}


def _clean(family: str, pipeline: Any) -> dict[str, Any]:
    """Only the latents: SDXL's has a switch, the other adds noise by its scheduler."""
    if family == "StableDiffusionXL":
        return {"add_noise": False}
    pipeline.scheduler.alphas_cumprod = torch.ones(1000)
    return {}
