"""A generator's LoRA: put on, averaged weights swapped in, written and read as stock diffusers does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

from lasro.config import LoraSettings
from lasro.config.base import Dtype
from lasro.errors import ModelError
from lasro.models.adapter import Adapter
from lasro.models.adapter_file import ADAPTER_FILE
from lasro.models.adapter_names import NETWORKS, UNET
from lasro.models.adapter_notes import note_timesteps
from lasro.models.initial_weights import drawn_from
from lasro.validation import one_line

GENERATOR = "generator"


def add_lora(
    network: Any, settings: LoraSettings, targets: tuple[str, ...], seed: int, device: torch.device
) -> list[nn.Parameter]:
    """Put a fresh trainable LoRA on `network`; returns its parameters, float32 on `device`, in a fixed order.

    `targets` holds where the settings name none. Raises ModelError where no module has such a name.
    """
    chosen = settings.targets or targets
    options: dict[str, Any] = {"lora_alpha": settings.alpha}  # peft takes a float here and declares an int
    config = LoraConfig(r=settings.rank, target_modules=list(chosen), **options)
    with drawn_from(seed):
        try:
            network.add_adapter(config, adapter_name=GENERATOR)
        except ValueError as error:
            raise ModelError(f"lora.targets: got {list(chosen)}, none of which this model has") from error
    parameters = [p for name, p in network.named_parameters() if "lora_" in name]
    for parameter in parameters:
        parameter.data = parameter.data.to(device, torch.float32)
        parameter.requires_grad_(True)
    return parameters


def save_adapter(
    pipeline_class: Any,
    network: Any,
    folder: Path,
    settings: LoraSettings,
    timesteps: tuple[int, ...] | None = None,
    part: str = UNET,
) -> Path:
    """Write the generator's LoRA so that stock diffusers loads it with `load_lora_weights`.

    alpha / rank is folded into the second factor, so no reader has to know it. The names stay peft's: diffusers' own
    converter renames attention layers only, and its loader then drops them from such a mixture. `timesteps`, for which
    it was trained, go into the file's metadata, where stock reads over them. `part`: what `network` is of the pipeline.
    """
    state = get_peft_model_state_dict(network, adapter_name=GENERATOR)
    scale = settings.alpha / settings.rank
    folded: dict[str, nn.Module | Tensor] = {
        name: (t * scale if "lora_B" in name else t).detach().cpu() for name, t in state.items()
    }
    pipeline_class.save_lora_weights(folder, **{f"{part}_lora_layers": folded})
    if timesteps is not None:
        note_timesteps(folder / ADAPTER_FILE, timesteps)
    return folder / ADAPTER_FILE


def initial_values(network: Any, adapter: Adapter, settings: LoraSettings, part: str = UNET) -> list[Tensor]:
    """Values of the fresh parameters of `add_lora` with which they are this adapter, in their order.

    An adapter of a lower rank fills the first rows and columns; the rest stays as it is and adds nothing yet.
    Raises ModelError, with settings that fit, for an adapter that has more than these parameters can hold.
    """
    fresh = {name: parameter.detach() for name, parameter in network.named_parameters() if "lora_" in name}
    loras = adapter.parts.get(part, {})
    trained = {name.partition(".lora_")[0] for name in fresh}
    _check_fits(adapter, part, trained, settings)
    values = []
    for name, value in fresh.items():
        lora, value = loras.get(name.partition(".lora_")[0]), value.clone()
        if lora is not None and "lora_A" in name:
            value[: lora.rank] = lora.down
        elif lora is not None:
            value[:, : lora.rank] = lora.up / (settings.alpha / settings.rank)
        values.append(value)
    return values


def _check_fits(adapter: Adapter, part: str, trained: set[str], settings: LoraSettings) -> None:
    loras = adapter.parts.get(part, {})
    is_dora = any(lora.magnitude is not None for lora in loras.values())
    if is_dora or adapter.parts.keys() != {part}:
        got = "DoRA" if is_dora else f"a LoRA of {' and '.join(sorted(adapter.parts))}"
        raise ModelError(
            f"{adapter.path}: got {got}, expected a plain LoRA of the {NETWORKS[part]}, which is all that is trained; "
            "fuse it with `lasro export` and give that folder as model.path"
        )
    changes = []
    if (rank := max(lora.rank for lora in loras.values())) > settings.rank:
        changes.append(f"lora.rank = {rank} (got {settings.rank})")
    if outside := loras.keys() - trained:
        targets = sorted({*_endings(outside), *settings.targets} | (set() if settings.targets else _endings(trained)))
        changes.append(f"lora.targets = {targets}")
    if changes:
        raise ModelError(f"{adapter.path}: does not fit this run's LoRA; set {' and '.join(changes)}")


def _endings(modules: Iterable[str]) -> set[str]:
    """What `lora.targets` would call them: the last part of each name that is not a number alone."""
    return {re.sub(r".*?([^.]+(\.\d+)?)$", r"\1", module) for module in modules}


@contextmanager
def without_adapters(pipeline: Any) -> Iterator[None]:
    """All networks of the pipeline as they are without the adapter that was loaded."""
    pipeline.disable_lora()
    try:
        yield
    finally:
        pipeline.enable_lora()


def fuse_adapter(pipeline: Any, dtype: Dtype | None = None) -> None:
    """Add the loaded adapter to the weights, and convert all networks to `dtype` then, None: leave them as they are.

    Raises ModelError where a weight would not be finite.
    """
    try:
        pipeline.fuse_lora(safe_fusing=True)
    except ValueError as error:
        raise ModelError(f"adapter: cannot be fused ({one_line(str(error))}); it is broken") from error
    pipeline.unload_lora_weights()
    if dtype is not None:
        _convert(pipeline, dtype)


def _convert(pipeline: Any, dtype: Dtype) -> None:
    for part, network in pipeline.components.items():
        if isinstance(network, nn.Module):
            network.to(getattr(torch, dtype))
            if any(not weight.isfinite().all() for weight in network.parameters()):
                raise ModelError(f"{part}: weights overflow in {dtype}; use --dtype float32 or bfloat16")


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
