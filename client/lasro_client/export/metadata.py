"""What stands in the head of an exported adapter's file: the model metadata standard, and what sd-scripts writes.

https://github.com/Stability-AI/ModelSpec, version 1.0.1; https://github.com/kohya-ss/sd-scripts, train_network.py.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from safetensors.torch import save
from torch import Tensor

from lasro.models.adapter import Adapter
from lasro.models.adapter_formats import usual_rank
from lasro.models.adapter_names import UNET
from lasro.models.published_names import PublishedNames
from lasro_client.export.source import Base
from lasro_client.report.run_data import RunData

SPEC_VERSION = "1.0.1"
FIRST_UNET = "https://github.com/Stability-AI/generative-models"
"""The codebase whose names a file of SDXL in kohya's form has."""


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Of all that stands behind the head of their safetensors file: the same whatever the metadata."""
    content = save(dict(tensors))
    head = 8 + int.from_bytes(content[:8], "little")
    return hashlib.sha256(memoryview(content)[head:]).hexdigest()


def describe(base: Base, run: RunData | None, is_adapter: bool = True) -> str:
    """One sentence about the adapter, or about the model that it is fused into."""
    what = f"A LoRA {'of' if is_adapter else 'fused into'} {base.name}, a few-step model"
    return f"{what}." if run is None else f"{what}, fine-tuned by LaSRO for {', '.join(rewards_of(run))}."


def rewards_of(run: RunData) -> list[str]:
    """Names of the rewards that the run trained for."""
    return [str(reward["name"]) for reward in run.config.get("rewards", [])]


def modelspec(
    names: PublishedNames,
    implementation: str,
    title: str,
    image_size: tuple[int, int],
    sha256: str,
    description: str,
    more: Mapping[str, str | None],
) -> dict[str, str]:
    """`modelspec.*`. `image_size`: height, width in pixels; `more`: keys of the standard, left out where None."""
    height, width = image_size
    about = {
        "sai_model_spec": SPEC_VERSION,
        "architecture": f"{names.architecture}/lora",
        "implementation": implementation,
        "title": title,
        "resolution": f"{width}x{height}",
        "description": description,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hash_sha256": f"0x{sha256}",
        "prediction_type": names.prediction,
    }
    return {f"modelspec.{key}": value for key, value in (about | dict(more)).items() if value is not None}


def sd_scripts(
    names: PublishedNames,
    adapter: Adapter,
    title: str,
    base: Base,
    image_size: tuple[int, int],
    sha256: str,
    run: RunData | None,
) -> dict[str, str]:
    """`ss_*`, of which A1111 tells SDXL from SD1.5, and `sshs_model_hash`, by which it knows a file again."""
    height, width = image_size
    usual = str(usual_rank(adapter))
    is_conv = any(lora.down.ndim == 4 and lora.down.shape[2] > 1 for lora in adapter.parts.get(UNET, {}).values())
    arguments = {"conv_dim": usual, "conv_alpha": usual} if is_conv else {}
    about: dict[str, Any] = {
        "ss_v2": names.base_version == "sd_v2",
        "ss_base_model_version": names.base_version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": usual,
        "ss_network_alpha": f"{float(usual)}",
        "ss_network_args": json.dumps(arguments),
        "ss_output_name": title,
        "ss_sd_model_name": base.name,
        "ss_resolution": (width, height),
        "sshs_model_hash": sha256,
    }
    if run is not None:
        about["ss_seed"] = run.config.get("seed", 0)
        about["ss_learning_rate"] = run.config.get("train", {}).get("learning_rate")
        about["ss_training_comment"] = f"LaSRO, run {run.name}: {', '.join(rewards_of(run))}"
    return {key: str(value) for key, value in about.items() if value is not None}
