"""A model's folder with something changed, for tests of what people bring."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

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
