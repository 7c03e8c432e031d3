"""A model's folder with something changed, for tests of what people bring."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lasro.config import ModelSettings
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro.training.sampling import sample_latents

PROMPT = "a red circle"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 3438167540\n"
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
VAE_WEIGHTS = "vae/diffusion_pytorch_model.safetensors"


def copy_model(model: Path, folder: Path) -> Path:
    """A copy whose files are the same ones on disk until one of them is changed."""
    return shutil.copytree(model, folder, copy_function=lambda old, new: Path(new).hardlink_to(old))


def change_json(path: Path, **entries: Any) -> None:
    """Put entries into a JSON file."""
    rewrite(path, json.dumps(json.loads(path.read_text()) | entries).encode())


def change_weights(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Rewrite a safetensors file."""
    state = {name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}
    path.unlink()
    save_file(state, path, metadata={"format": "pt"})


def rewrite(path: Path, body: bytes) -> None:
    """Another file in its place."""
    path.unlink(missing_ok=True)
    path.write_bytes(body)


def remove_keys(folder: Path) -> None:
    """Drop 10 of the UNet's weights."""
    change_weights(folder / UNET_WEIGHTS, lambda s: {k: v for k, v in s.items() if "mid_block.resnets.0" not in k})


def load(path: Path | str, **settings: Any) -> GeneratorModel:
    """On the CPU."""
    return load_model(ModelSettings(path=str(path), device="cpu", **settings))


def images_of(model: GeneratorModel) -> Tensor:
    """A two-step image of one prompt and one noise, uint8 [1, h, w, 3]."""
    draws = torch.Generator().manual_seed(0)
    noises = [torch.randn(1, *model.latent_shape, generator=draws) for _ in range(2)]
    with torch.no_grad():
        return torch.from_numpy(model.decode(sample_latents(model, noises, model.embed([PROMPT]))[-1]))
