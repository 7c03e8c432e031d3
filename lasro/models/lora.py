"""A generator's LoRA: put on, averaged weights swapped in, written and read as stock diffusers does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

from lasro.config import LoraSettings
from lasro.errors import ModelError
from lasro.models.base import LOADING_ERRORS

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
GENERATOR = "generator"


def add_lora(network: Any, settings: LoraSettings, targets: tuple[str, ...], seed: int) -> list[nn.Parameter]:
    """Put a fresh trainable LoRA on `network`; returns its parameters, float32, in a fixed order.

    `targets` holds where the settings name none. Raises ModelError where no module has such a name.
    """
    chosen = settings.targets or targets
    options: dict[str, Any] = {"lora_alpha": settings.alpha}  # peft takes a float here and declares an int
    config = LoraConfig(r=settings.rank, target_modules=list(chosen), **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network.add_adapter(config, adapter_name=GENERATOR)
        except ValueError as error:
            raise ModelError(f"lora.targets: got {list(chosen)}, none of which this model has") from error
    parameters = [p for name, p in network.named_parameters() if "lora_" in name]
    for parameter in parameters:
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return parameters


def save_adapter(pipeline_class: Any, network: Any, folder: Path, settings: LoraSettings) -> Path:
    """Write the generator's LoRA so that stock diffusers loads it with `load_lora_weights`.

    alpha / rank is folded into the second factor, so no reader has to know it. The names stay peft's: diffusers' own
    converter renames attention layers only, and its loader then drops them from such a mixture.
    """
    state = get_peft_model_state_dict(network, adapter_name=GENERATOR)
    scale = settings.alpha / settings.rank
    folded: dict[str, nn.Module | Tensor] = {
        name: (t * scale if "lora_B" in name else t).detach().cpu() for name, t in state.items()
    }
    pipeline_class.save_lora_weights(folder, unet_lora_layers=folded)
    return folder / ADAPTER_FILE


def load_adapter(pipeline: Any, folder: Path) -> None:
    """Load an adapter, ours or any that diffusers reads, onto the pipeline's network; raises ModelError."""
    if not folder.exists():
        raise ModelError(f"{folder}: no such adapter; expected a folder with {ADAPTER_FILE}")
    try:
        pipeline.load_lora_weights(folder)
    except LOADING_ERRORS as error:
        raise ModelError(f"{folder}: cannot be loaded as a LoRA for this model ({error})") from error


@contextmanager
def parameters_set(parameters: list[nn.Parameter], values: list[Tensor]) -> Iterator[None]:
    """Give the parameters other values for a while, such as averaged ones."""
    kept = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
