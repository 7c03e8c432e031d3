"""LoRA adapters of any origin, in one form, and put on the networks of a pipeline with nothing lost on the way.

diffusers and peft leave out keys that they have no place for, and say so in a log line at most. Here every key of a
file is looked up first, and what has arrived on the networks is compared with the file.

Shape legend: r rank, in, out features or channels, k kernel.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import set_peft_model_state_dict
from safetensors.torch import save
from torch import Tensor, nn

from lasro.errors import ModelError
from lasro.models.adapter_file import AdapterFile, first_names, read_adapter
from lasro.models.adapter_names import ModuleNames, Place, unsupported_kind
from lasro.models.loading import loading

log = logging.getLogger("lasro")
LOADED = "loaded"
"""Name of the adapter on the networks."""


class AdapterKeys(NamedTuple):
    """How many of an adapter's keys were loaded; `missing` names the first of the others, for people."""

    loaded: int
    total: int
    missing: str

    def as_dict(self) -> dict[str, int]:
        """For JSON."""
        return {"loaded": self.loaded, "total": self.total}


class ModuleLora(NamedTuple):
    """What is added to a module's weight: up @ down, its scale in `up`.

    `down` float32 [r, in] or [r, in, k, k], `up` [out, r] or [out, r, 1, 1]. `magnitude` [out]: DoRA's norms of the
    sum's rows, None for a plain LoRA.
    """

    down: Tensor
    up: Tensor
    magnitude: Tensor | None

    @property
    def rank(self) -> int:
        return len(self.down)


class Adapter(NamedTuple):
    """A file's LoRA, by part of the pipeline and module."""

    path: Path
    parts: Mapping[str, Mapping[str, ModuleLora]]
    keys: AdapterKeys


def find_adapter(path: Path, names: ModuleNames, partial: bool = False, may_be_partial: bool = True) -> Adapter:
    """Read an adapter and find the module of each of its keys.

    Raises ModelError for a file that cannot be used, one of which no key has a place in these networks and, unless
    `partial`, one of which not every key has; `may_be_partial` says whether the message advises it.
    """
    file = read_adapter(path)
    found: dict[Place, str] = {}
    for key in file.tensors:
        place = names.find(key)
        if place is not None and found.setdefault(place, key) != key:
            raise ModelError(f"{file.path}: {found[place][:100]} and {key[:100]} are the same; expected each once")
    by_module: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for place, key in found.items():
        by_module[place.part, place.module][place.factor] = key
    whole = {module: keys for module, keys in by_module.items() if keys.keys() >= {"A", "B"}}
    placed = {key for keys in whole.values() for key in keys.values()}
    unplaced = [key for key in file.tensors if key not in placed]
    if unplaced and not (partial and placed):
        raise ModelError(_misfit(file, unplaced, len(placed) if may_be_partial else 0))
    parts: dict[str, dict[str, ModuleLora]] = defaultdict(dict)
    for (part, module), keys in whole.items():
        parts[part][module] = _module_lora(file, part, module, names.modules[part][module], keys)
    if not any(lora.up.any() or lora.magnitude is not None for loras in parts.values() for lora in loras.values()):
        log.warning(
            f"{file.path}: changes nothing, since each of its second factors or alphas is zero; is it untrained?"
        )
    return Adapter(file.path, parts, AdapterKeys(len(placed), len(file.tensors), first_names(unplaced)))


def _misfit(file: AdapterFile, unplaced: list[str], num_placed: int) -> str:
    kind = unsupported_kind(unplaced)
    reason = f"{kind}, not supported" if kind else "of another model, incomplete, or in a form that is not read"
    advice = (
        f"--partial (generate, evaluate, export) loads the other {num_placed}"
        if num_placed
        else "use a LoRA of this model"
    )
    num, total = len(unplaced), len(file.tensors)
    return (
        f"{file.path}: {num} of {total} keys have no place in this model ({first_names(unplaced)}): {reason}; {advice}"
    )


def _module_lora(
    file: AdapterFile, part: str, name: str, module: nn.Linear | nn.Conv2d, keys: Mapping[str, str]
) -> ModuleLora:
    down, up = file.tensors[keys["A"]], file.tensors[keys["B"]]
    if "mid" in keys:
        down = _merge_mid(file, keys["mid"], down)
    down, up = _like_weight(down, module), _like_weight(up, module)
    weight, rank = module.weight, max(1, len(down)) if down.ndim else 1
    kernel = (1,) * (weight.ndim - 2)
    for key, factor, expected in (
        (keys["A"], down, (rank, *weight.shape[1:])),
        (keys["B"], up, (len(weight), rank, *kernel)),
    ):
        if tuple(factor.shape) != expected:
            raise ModelError(
                f"{file.path}: {key[:100]}: got shape {tuple(file.tensors[key].shape)}, expected {expected} for this "
                "model; it is of another one"
            )
    magnitude = _magnitude(file, keys["magnitude"], len(weight)) if "magnitude" in keys else None
    return ModuleLora(down, up * _scale(file, part, name, rank, keys.get("alpha")), magnitude)


def _merge_mid(file: AdapterFile, key: str, down: Tensor) -> Tensor:
    """One convolution of the two that a LoCon in Tucker form has below its third."""
    mid = file.tensors[key]
    if mid.ndim != 4 or mid.shape[1] != len(down):
        raise ModelError(f"{file.path}: {key[:100]}: got shape {tuple(mid.shape)}, expected [r, {len(down)}, k, k]")
    return torch.einsum("rskl,si->rikl", mid, down.flatten(1))


def _like_weight(factor: Tensor, module: nn.Module) -> Tensor:
    """A linear layer's factor as that of a convolution with kernel 1, or the other way round, as the module is."""
    if isinstance(module, nn.Conv2d) and factor.ndim == 2:
        return factor[..., None, None]
    if isinstance(module, nn.Linear) and factor.ndim == 4 and factor.shape[2:] == (1, 1):
        return factor.flatten(1)
    return factor


def _magnitude(file: AdapterFile, key: str, out: int) -> Tensor:
    magnitude = file.tensors[key]
    shape = tuple(magnitude.shape)
    by_row = (out,) + (1,) * (magnitude.ndim - 1)
    if shape != by_row and (shape != (1, out, 1, 1) or "dora_scale" in key):
        raise ModelError(f"{file.path}: {key[:100]}: got shape {shape}, expected {by_row}, a norm for each output")
    return magnitude.flatten()


def _scale(file: AdapterFile, part: str, module: str, rank: int, alpha_key: str | None) -> float:
    if alpha_key is not None:
        alpha = file.tensors[alpha_key]
        if alpha.numel() != 1:
            raise ModelError(f"{file.path}: {alpha_key[:100]}: got shape {tuple(alpha.shape)}, expected one number")
        return alpha.item() / rank
    scale = file.scales.get(part) or file.scales.get("")
    if scale is None:
        return 1.0
    if rank != scale.rank(module):
        raise ModelError(
            f"{file.path}: {module}: got a LoRA of rank {rank}, but its configuration says {scale.rank(module)}"
        )
    return scale.of(module)


def put_on(networks: Mapping[str, Any], adapter: Adapter) -> None:
    """Put the LoRA on the networks, by part; raises ModelError unless each of its tensors has arrived there."""
    for part, loras in adapter.parts.items():
        with loading(f"{adapter.path}: {part}"):
            _add(networks[part], loras)
        _verify(adapter.path, networks[part], loras)


def _add(network: Any, loras: Mapping[str, ModuleLora]) -> None:
    network.add_adapter(peft_config(loras), adapter_name=LOADED)
    set_peft_model_state_dict(network, peft_tensors(loras), adapter_name=LOADED)


def peft_config(loras: Mapping[str, ModuleLora]) -> LoraConfig:
    """peft's settings of one network's LoRA: scale 1, each module named whole. Raises ValueError where only some are
    DoRA."""
    ranks = {module: lora.rank for module, lora in loras.items()}
    usual = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{re.escape(module)}": rank for module, rank in ranks.items() if rank != usual}
    has_magnitude = {lora.magnitude is not None for lora in loras.values()}
    if len(has_magnitude) > 1:
        raise ValueError("some of its modules are DoRA and some are not")
    return LoraConfig(
        r=usual,
        lora_alpha=usual,
        rank_pattern=others,
        alpha_pattern=dict(others),
        target_modules=list(loras),
        use_dora=has_magnitude.pop(),
    )


def peft_tensors(loras: Mapping[str, ModuleLora]) -> dict[str, Tensor]:
    """The same LoRA's tensors in peft's names, without what peft puts in front of a module's name."""
    tensors = {}
    for module, lora in loras.items():
        tensors |= {f"{module}.lora_A.weight": lora.down, f"{module}.lora_B.weight": lora.up}
        if lora.magnitude is not None:
            magnitude = lora.magnitude if lora.down.ndim == 2 else lora.magnitude.reshape(1, -1, 1, 1)
            tensors[f"{module}.lora_magnitude_vector"] = magnitude
    return tensors


def values_digest(parts: Mapping[str, Mapping[str, ModuleLora]]) -> str:
    """SHA-256 of a LoRA's values, whatever the form of the file that they were in."""
    tensors = {f"{part}.{name}": t for part, loras in parts.items() for name, t in peft_tensors(loras).items()}
    return hashlib.sha256(save({name: tensor.contiguous() for name, tensor in tensors.items()})).hexdigest()


def _verify(path: Path, network: nn.Module, loras: Mapping[str, ModuleLora]) -> None:
    """Compare what the network computes with now with what the file says, module by module."""
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, LoraLayer)}
    if wrong := sorted(layers.keys() ^ loras.keys()):
        raise ModelError(f"{path}: peft put its {len(loras)} modules on {len(layers)} ({first_names(wrong)})")
    for name, lora in loras.items():
        layer: Any = layers[name]
        pairs = [(layer.lora_A[LOADED].weight, lora.down), (layer.lora_B[LOADED].weight, lora.up)]
        if lora.magnitude is not None:
            pairs.append((layer.lora_magnitude_vector[LOADED].weight.flatten(), lora.magnitude))
        for placed, expected in pairs:
            if not placed.isfinite().all():
                raise ModelError(f"{path}: {name} overflows in {placed.dtype}; use another dtype")
            if layer.scaling[LOADED] != 1 or not torch.equal(placed, expected.to(placed)):
                raise ModelError(f"{path}: {name}: peft did not take its values as they are in the file")
