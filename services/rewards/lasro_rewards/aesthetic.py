"""LAION aesthetic score: a small network on CLIP ViT-L/14 image features, about 1 to 10. Extra: `clip`.

As simple_inference.py of github.com/christophschuhmann/improved-aesthetic-predictor at 3ade56d7: unit features through
five linear layers with no activation between them (768, 1024, 128, 64, 16, 1), so the whole head is one linear map.
The prompt is not looked at.

Upstream publishes the head in pickle form only. Convert it once, see `convert.py`, and set `LASRO_AESTHETIC_HEAD` to
the file.

Code: transformers (Apache-2.0). Weights: openai/clip-vit-large-patch14 (MIT) and the head, whose repository shows no
licence file.

Shape legend: B batch, D features.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lasro.errors import ModelError
from lasro.reward_sdk import reward
from lasro_rewards.clip_features import clip_features
from lasro_rewards.settings import settings
from lasro_rewards.weights import missing

LAYERS = (0, 2, 4, 6, 7)  # places of the linear layers in upstream's Sequential; dropout stands between them


@reward
def aesthetic(images: list[Image.Image], prompts: list[str], metadata: list[Any]) -> list[float]:
    """Predicted rating, about 1 to 10, higher is better; prompts are not looked at."""
    return linear_head(clip_features("clip_model").of_images(images), head(settings().aesthetic_head)).tolist()


def linear_head(features_BD: NDArray[np.float32], tensors: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """[B]: the features through every layer."""
    for layer in LAYERS:
        features_BD = features_BD @ tensors[f"layers.{layer}.weight"].T + tensors[f"layers.{layer}.bias"]
    return features_BD[:, 0]


@cache
def head(path: str) -> dict[str, NDArray[np.float32]]:
    """The head's tensors; raises ModelError."""
    if not Path(path).is_file():
        raise ModelError(missing("aesthetic_head"))
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ModelError(f"LASRO_AESTHETIC_HEAD: got {path!r}, expected a safetensors file ({error})") from error
    wanted = {f"layers.{layer}.{part}" for layer in LAYERS for part in ("weight", "bias")}
    if set(tensors) != wanted:
        raise ModelError(f"{path}: got tensors {sorted(tensors)[:4]}, expected {sorted(wanted)[:4]} and so on")
    return tensors
