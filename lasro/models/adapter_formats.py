"""A LoRA in the forms in which other tools read one: diffusers', kohya's (ComfyUI, A1111), peft's.

Scale and strength are folded into the second factors: without an alpha a reader's scale is 1, and where a form has one
it is the same for all modules. Stock diffusers finds only the commonest of a kohya file's alphas for attention layers.
What cannot be said in a form is refused, never left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from peft import LoraConfig
from torch import Tensor

from lasro.config.base import Dtype
from lasro.errors import ModelError
from lasro.models.adapter import Adapter, peft_config, peft_tensors
from lasro.models.adapter_file import first_names
from lasro.models.adapter_names import UNET
from lasro.models.loading import loading

PEFT_PREFIX = "base_model.model."
Tensors = dict[str, Tensor]


def scaled(adapter: Adapter, strength: float) -> Adapter:
    """The adapter times `strength`, a finite number; raises ModelError where DoRA keeps that from being one."""
    if strength == 1.0:
        return adapter
    if any(lora.magnitude is not None for loras in adapter.parts.values() for lora in loras.values()):
        raise ModelError(
            f"{adapter.path}: got DoRA and strength {strength:g}, expected a plain LoRA: norms cannot be scaled; "
            "leave --strength out, and set it in the tool that draws"
        )
    parts = {
        part: {module: lora._replace(up=lora.up * strength) for module, lora in loras.items()}
        for part, loras in adapter.parts.items()
    }
    return adapter._replace(parts=parts)


def diffusers_tensors(adapter: Adapter) -> Tensors:
    """As stock `load_lora_weights` reads it. Raises ModelError where only some modules are DoRA."""
    tensors: Tensors = {}
    for part, loras in adapter.parts.items():
        with loading(f"{adapter.path}: {part}"):
            peft_config(loras)
        prefix = "" if part == UNET else "text_model."  # transformers has it in front or not, files always do
        for name, tensor in peft_tensors(loras).items():
            bare = name.removeprefix(prefix)
            tensors[f"{part}.{name if bare.startswith('text_projection.') else prefix + bare}"] = tensor
    return tensors


def peft_form(adapter: Adapter) -> tuple[Tensors, LoraConfig]:
    """As `PeftModel.from_pretrained` reads it, which wraps one network. Raises ModelError for a LoRA of more."""
    if adapter.parts.keys() != {UNET}:
        raise ModelError(
            f"{adapter.path}: got a LoRA of {' and '.join(sorted(adapter.parts))}, but peft's form is of the UNet "
            "alone; use --format diffusers or kohya"
        )
    loras = adapter.parts[UNET]
    with loading(f"{adapter.path}: {UNET}"):
        config = peft_config(loras)
    return {PEFT_PREFIX + name: tensor for name, tensor in peft_tensors(loras).items()}, config


def kohya_tensors(adapter: Adapter, names: Mapping[str, Mapping[str, str]]) -> Tensors:
    """As sd-scripts writes it. `names`: part -> module -> its name there; raises ModelError for one without."""
    nameless = [
        f"{part}.{module}" for part, loras in adapter.parts.items() for module in loras.keys() - names[part].keys()
    ]
    if nameless:
        raise ModelError(
            f"{adapter.path}: {len(nameless)} modules have no name in kohya's form ({first_names(sorted(nameless))}), "
            "and no tool would find them; use --format diffusers or merged"
        )
    tensors: Tensors = {}
    alpha = usual_rank(adapter)
    for part, loras in adapter.parts.items():
        for module, lora in loras.items():
            name = names[part][module]
            up = lora.up * (lora.rank / alpha)  # which a reader multiplies by alpha / rank
            tensors |= {f"{name}.lora_down.weight": lora.down, f"{name}.lora_up.weight": up}
            tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
            if lora.magnitude is not None:
                tensors[f"{name}.dora_scale"] = lora.magnitude.reshape(-1, *[1] * (lora.down.ndim - 1))
    return tensors


def usual_rank(adapter: Adapter) -> int:
    """The rank that most of its modules have."""
    return Counter(lora.rank for loras in adapter.parts.values() for lora in loras.values()).most_common(1)[0][0]


def in_dtype(tensors: Mapping[str, Tensor], dtype: Dtype, where: object) -> Tensors:
    """All in `dtype` but single numbers, which stay exact; raises ModelError where one is too large for it."""
    target = getattr(torch, dtype)
    cast = {name: (t if t.ndim == 0 else t.to(target)).contiguous() for name, t in tensors.items()}
    if wrong := [name for name, tensor in cast.items() if not tensor.isfinite().all()]:
        raise ModelError(
            f"{where}: {len(wrong)} tensors overflow in {dtype} ({first_names(wrong)}); use --dtype float32 or bfloat16"
        )
    return cast
