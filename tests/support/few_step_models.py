"""Few-step models as they are published, over tiny random networks, and what stock diffusers draws with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from changed_model import copy_model, rewrite
from tiny_model import diffusers
from torch import Tensor

from lasro.config import ModelSettings
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro.models.unet_generator import UNetGenerator
from lasro.training.sampling import sample_latents

PROMPT = "a red circle left of a blue square"
SDXL_BASE: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "clip_sample": False, "interpolation_type": "linear", "num_train_timesteps": 1000,
    "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False,
}  # fmt: skip
"""The scheduler's configuration in the folder of stable-diffusion-xl-base-1.0."""
TRAILING = SDXL_BASE | {"timestep_spacing": "trailing"}
TURBO = TRAILING | {"_class_name": "EulerAncestralDiscreteScheduler"}
"""The same in the folder of SDXL-Turbo."""

NOTHING: Mapping[str, Any] = MappingProxyType({})
FromConfig = Callable[[Any], Any]
"""What a model's card makes of the folder's scheduler configuration."""


class Published(NamedTuple):
    """A few-step model: its folder's scheduler, what its card does with it, and what says the same here."""

    scheduler: dict[str, Any]
    settings: Mapping[str, Any] = NOTHING
    stock: FromConfig | None = None
    call: Mapping[str, Any] = NOTHING
    """Arguments of the stock pipeline."""
    steps: tuple[int, ...] = (1, 2, 4)
    tolerance: float = 1e-4


def with_scheduler(model: Path, folder: Path, config: dict[str, Any]) -> Path:
    """A copy of a model's folder with another scheduler."""
    copy_model(model, folder)
    rewrite(folder / "scheduler/scheduler_config.json", json.dumps(config).encode())
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", config["_class_name"]]
    rewrite(folder / "model_index.json", json.dumps(index).encode())
    return folder


def load(folder: Path, **settings: Any) -> UNetGenerator:
    """On the CPU, without guidance."""
    given: dict[str, Any] = {"guidance": 1.0, **settings}
    model = load_model(ModelSettings(path=str(folder), device="cpu", **given))
    assert isinstance(model, UNetGenerator)
    return model


def stock_pipeline(folder: Path, from_config: FromConfig | None = None) -> Any:
    """The stock pipeline of a folder, with the scheduler that the model's card makes of its configuration."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    if from_config is not None:
        pipeline.scheduler = from_config(pipeline.scheduler.config)
    return pipeline


def stock_latents(pipeline: Any, num_steps: int, **call: Any) -> Tensor:
    """Latents of one prompt by the stock pipeline; with `timesteps` of so many steps at the first of these."""
    if "timesteps" in call:
        call["timesteps"] = list(call["timesteps"][:num_steps])
    else:
        call["num_inference_steps"] = num_steps
    draws = torch.Generator().manual_seed(7)
    options = {"guidance_scale": 0.0, **call}
    return pipeline(PROMPT, generator=draws, output_type="latent", **options).images


def our_latents(model: GeneratorModel, num_steps: int) -> Tensor:
    """The same by ours, from the same draws."""
    draws = torch.Generator().manual_seed(7)
    noises = [torch.randn(1, *model.latent_shape, generator=draws) for _ in range(num_steps)]
    with torch.no_grad():
        return sample_latents(model, noises, model.embed([PROMPT]))[-1]


def difference(ours: Tensor, stock: Tensor) -> float:
    """Largest difference of any two latents, in units of the largest latent where that is over 1."""
    return ((ours - stock).abs().max() / max(1.0, float(stock.abs().max()))).item()
