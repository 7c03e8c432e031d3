"""What a folder's scheduler says is what stock diffusers draws by, or is refused by name; nothing is left out."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from changed_model import change_json, copy_model
from diffusers.schedulers.scheduling_lcm import LCMScheduler

from lasro.config import ModelSettings
from lasro.errors import ModelError
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro.training.sampling import sample_latents

PROMPT = "a red circle"
HONOURED: list[dict[str, Any]] = [
    {"clip_sample": True, "clip_sample_range": 0.5},
    {"original_inference_steps": 100},
    {"original_inference_steps": 30},
    {"timestep_scaling": 0.01},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "sample"},
    {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    {"beta_schedule": "linear", "beta_end": 0.02},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": [0.001 + 0.00001 * i for i in range(1000)]},
    {"set_alpha_to_one": True, "steps_offset": 1, "timestep_spacing": "trailing"},
]
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"thresholding": True}, "thresholding: got True"),
    ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr: got a last timestep that is all noise"),
    ({"trained_betas": [0.001] * 500}, "trained_betas: got 500, expected 1000"),
    ({"trained_betas": [0.001] * 999 + [2.0]}, "trained_betas: got 1000, expected 1000 between 0 and 1"),
    ({"num_train_timesteps": 500}, "num_train_timesteps: got 500"),
    ({"original_inference_steps": 2}, "original_inference_steps: got 2"),
    ({"prediction_type": "flow_prediction"}, "prediction_type: got 'flow_prediction'"),
    ({"timestep_scaling": 0.0}, "timestep_scaling: got 0.0"),
    ({"beta_schedule": "sigmoid"}, "cannot be loaded (sigmoid is not implemented"),
    ({"_class_name": "EulerDiscreteScheduler"}, "got EulerDiscreteScheduler in scheduler_config.json and LCMScheduler"),
]


def load(path: Path, **settings: Any) -> GeneratorModel:
    return load_model(ModelSettings(path=str(path), device="cpu", **settings))


def our_latents(model: GeneratorModel, num_steps: int) -> torch.Tensor:
    draws = torch.Generator().manual_seed(3)
    noises = [torch.randn(1, *model.latent_shape, generator=draws) for _ in range(num_steps)]
    with torch.no_grad():
        return sample_latents(model, noises, model.embed([PROMPT]))[-1]


@pytest.fixture(scope="module")
def stock(tiny_model_path: Path) -> Any:
    """The stock pipeline of the tiny model."""
    diffusers: Any = importlib.import_module("diffusers")
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(tiny_model_path, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def folder(tiny_model_path: Path, tmp_path: Path) -> Path:
    return copy_model(tiny_model_path, tmp_path / "model")


@pytest.mark.parametrize(
    "changed", HONOURED, ids=lambda changed: ", ".join(f"{k}={v}"[:40] for k, v in changed.items())
)
def test_latents_are_those_of_stock_diffusers(stock: Any, folder: Path, changed: dict[str, Any]) -> None:
    """Bug: clip_sample and original_inference_steps were left out, so that the model drew other images than stock."""
    change_json(folder / "scheduler/scheduler_config.json", **changed)
    model = load(folder)
    stock.scheduler = LCMScheduler.from_pretrained(folder, subfolder="scheduler")
    for num_steps in (1, 2, 4):
        options = {"num_inference_steps": num_steps, "guidance_scale": 4.0, "output_type": "latent"}
        expected = stock(PROMPT, generator=torch.Generator().manual_seed(3), **options).images
        ours = our_latents(model, num_steps)
        assert (ours - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("timesteps", [(999, 299), (899, 300), (999, 0)])
@pytest.mark.parametrize("changed", [{}, {"original_inference_steps": 30}], ids=["50", "30"])
def test_custom_timesteps_are_those_of_stock_diffusers(
    stock: Any, folder: Path, changed: dict[str, Any], timesteps: tuple[int, int]
) -> None:
    """Bug: timesteps off the distillation's grid were moved onto it; stock warns of them and goes by them."""
    change_json(folder / "scheduler/scheduler_config.json", **changed)
    model = load(folder, timesteps=timesteps)
    stock.scheduler = LCMScheduler.from_pretrained(folder, subfolder="scheduler")
    for num_steps in (1, 2):
        options = {"timesteps": list(timesteps[:num_steps]), "guidance_scale": 4.0, "output_type": "latent"}
        expected = stock(PROMPT, generator=torch.Generator().manual_seed(3), **options).images
        ours = our_latents(model, num_steps)
        assert (ours - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize(("changed", "message"), REFUSED, ids=lambda given: str(given)[:40])
def test_what_is_not_honoured_is_refused(folder: Path, changed: dict[str, Any], message: str) -> None:
    """Bug: such settings were left out without a word, or were a traceback."""
    change_json(folder / "scheduler/scheduler_config.json", **changed)
    with pytest.raises(ModelError) as refusal:
        load(folder)
    assert str(refusal.value).startswith(f"model.path {folder}: scheduler: {message}")


def test_a_scheduler_of_another_class_is_taken_where_that_is_asked_for(folder: Path, tiny_model_path: Path) -> None:
    """Bug: a folder that stock samples by Euler's method was sampled as a consistency model without a word. Where the
    UNet is given apart, as LCM-SSD-1B is, the folder's scheduler is that of the UNet before it."""
    expected = our_latents(load(tiny_model_path), 2)
    change_json(folder / "scheduler/scheduler_config.json", _class_name="EulerDiscreteScheduler")
    change_json(folder / "model_index.json", scheduler=["diffusers", "EulerDiscreteScheduler"])
    with pytest.raises(ModelError, match=r'scheduler: got EulerDiscreteScheduler.*set model\.scheduler = "lcm"'):
        load(folder)
    assert torch.equal(our_latents(load(folder, scheduler="lcm"), 2), expected)
    assert torch.equal(our_latents(load(folder, unet=str(tiny_model_path / "unet")), 2), expected)
