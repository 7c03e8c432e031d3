"""What a model draws with an adapter, by us and by stock diffusers."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tiny_model import diffusers

from lasro.config import ModelSettings
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro.models.unet_generator import UNetGenerator
from lasro.training.sampling import sample_latents

PROMPT = "a red circle left of a blue square"
GUIDANCE = 8.0


def settings(folder: Path) -> ModelSettings:
    return ModelSettings(path=str(folder), device="cpu", guidance=GUIDANCE)


@lru_cache
def _model(folder: Path) -> UNetGenerator:
    model = load_model(settings(folder))
    assert isinstance(model, UNetGenerator)
    return model


def load(folder: Path) -> UNetGenerator:
    """The same model each time, to save that time, and without what the last test put on it."""
    model = _model(folder)
    model.pipeline.unload_lora_weights()
    model.prompt_encoder.embeddings.clear()  # a text encoder may have been adapted, too
    model.prompt_encoder._adapted = False
    return model


def load_stock(folder: Path) -> Any:
    """diffusers' own pipeline, the same each time, and without what the last test put on it."""
    pipeline = _stock(folder)
    pipeline.unload_lora_weights()
    return pipeline


@lru_cache
def _stock(folder: Path) -> Any:
    kind = json.loads((folder / "model_index.json").read_text())["_class_name"]
    pipeline: Any = getattr(diffusers, kind).from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(model: GeneratorModel, base: bool = False) -> torch.Tensor:
    """Of two steps, always with the same noise."""
    draws = torch.Generator().manual_seed(7)
    noises = [torch.randn(1, *model.latent_shape, generator=draws) for _ in range(2)]
    with torch.no_grad():
        return sample_latents(model, noises, model.embed([PROMPT], base), base)[-1]


@lru_cache
def base_latents(folder: Path) -> torch.Tensor:
    """The same by a model that never had an adapter."""
    return latents(load_model(settings(folder)))


def stock_latents(folder: Path, adapter: Path, weight_name: str | None = None) -> torch.Tensor:
    """The same by diffusers' own pipeline, with the adapter loaded by `load_lora_weights`."""
    pipeline = load_stock(folder)
    pipeline.load_lora_weights(adapter, weight_name=weight_name)
    return stock_drawn(pipeline)


def stock_drawn(pipeline: Any) -> torch.Tensor:
    """The same by diffusers' own pipeline as it is."""
    draws = torch.Generator().manual_seed(7)
    options = {"num_inference_steps": 2, "guidance_scale": GUIDANCE, "output_type": "latent"}
    return pipeline(PROMPT, generator=draws, **options).images
