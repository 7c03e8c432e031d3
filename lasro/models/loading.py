"""Parts of a pipeline from a folder or hub id: whole, finite, and the right class; what is not is a ModelError.

diffusers and transformers fill weights that a file lacks with random numbers, and leave out those for which the model
has no place. Both only warn, so both are looked for here.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import nn

from lasro.errors import ModelError
from lasro.models.device import device_memory
from lasro.models.files import check_files, weights_variant
from lasro.validation import one_line

MEMORY_ADVICE = 'set model.dtype = "bfloat16", or take a smaller model or another device'
LOADING_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    RuntimeError,
    AttributeError,  # of a class that does not exist, and of a part that is null
    TypeError,
    ImportError,
    SafetensorError,
    SingleFileComponentError,
)
"""What diffusers, transformers and safetensors raise for a folder, file or hub id that they cannot load."""


@contextmanager
def loading(where: str) -> Iterator[None]:
    """What a library raises inside becomes a ModelError that begins with `where`: the setting, its value, the part."""
    try:
        with device_memory(f"loading {where}", MEMORY_ADVICE):
            yield
    except ModelError:
        raise
    except LOADING_ERRORS as error:
        raise ModelError(f"{where}: cannot be loaded ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    if "meta tensor" in str(error):  # one that was set up, and for which the file then held nothing
        return "it lacks weights that its configuration asks for"
    if (unreachable := hub_unreachable(error)) is not None:
        return unreachable
    first = str(error).split(". ")[0]  # what follows advises on arguments in Python
    if "ignore_mismatched_sizes" in first:
        return "its weights have other shapes than its configuration says"
    return one_line(first) or type(error).__name__


def hub_unreachable(error: BaseException | None) -> str | None:
    """Why the hub could not be asked for what its cache lacks; None for an error of another kind."""
    asked = False
    while error is not None:
        asked, last = asked or isinstance(error, LocalEntryNotFoundError), error
        error = error.__cause__ or error.__context__
        if asked and error is None:
            reason = one_line(str(last).split(". ")[0])[:200]
            return f"not in the hub's cache here, and the hub cannot be asked: {reason}; name a folder, or go online"
    return None


def part_class(index: dict[str, Any], part: str, where: str) -> Any:
    """The class that a `model_index.json` names for a part."""
    found = index.get(part)
    if not isinstance(found, list) or len(found) != 2 or None in found:
        raise ModelError(f"{where}: got {one_line(repr(found))} in model_index.json, expected its library and class")
    library, name = found
    if library not in ("diffusers", "transformers") or not hasattr(importlib.import_module(library), str(name)):
        raise ModelError(f"{where}: got {one_line(f'{library}.{name}')} in model_index.json, which is no class there")
    return getattr(importlib.import_module(library), name)


def load_part(kind: Any, folder: Path, where: str, dtype: torch.dtype) -> Any:
    """One part of a folder as its class; a network in `dtype`, with every weight found and finite."""
    check_files(folder, where)
    if not issubclass(kind, nn.Module):
        with loading(where):
            return kind.from_pretrained(folder)
    return load_network(kind, str(folder), where, dtype, weights_variant(folder, where))


def unread_part(kind: Any, folder: Path, where: str, dtype: torch.dtype) -> Any:
    """A network as `load_part` would read it, on the meta device: its files are only looked at."""
    check_files(folder, where)
    weights_variant(folder, where)
    with loading(where), torch.device("meta"):
        if hasattr(kind, "load_config"):  # of diffusers
            return kind.from_config(kind.load_config(folder)).to(dtype)
        return kind(kind.config_class.from_pretrained(folder)).to(dtype)


def load_network(kind: Any, source: str, where: str, dtype: torch.dtype, variant: str | None = None) -> Any:
    """A network from a folder or hub id, with every weight found and finite."""
    with loading(where):
        network, info = kind.from_pretrained(
            source, dtype=dtype, use_safetensors=True, variant=variant, output_loading_info=True
        )
    if missing := info["missing_keys"]:
        raise ModelError(
            f"{where}: lacks {_names(missing)} of its {len(network.state_dict())} weights; download it again, or take "
            "the config.json that belongs to its weights"
        )
    if kind is UNet2DConditionModel and (extra := info["unexpected_keys"]):
        raise ModelError(f"{where}: has no place for {_names(extra)}; take the config.json that belongs to its weights")
    check_finite(network, where)
    return network


def check_finite(network: nn.Module, where: str) -> None:
    """Raises ModelError for weights of NaN or infinity, which make every image black."""
    if absent := [name for name, weight in network.named_parameters() if weight.is_meta]:
        raise ModelError(f"{where}: lacks {_names(absent)}; the file is of another model than its configuration")
    weights = [(name, t) for name, t in network.state_dict().items() if t.is_floating_point() and t.numel()]
    if broken := [name for name, weight in weights if not all(limit.isfinite() for limit in weight.aminmax())]:
        dtype = str(next(network.parameters()).dtype).removeprefix("torch.")
        raise ModelError(
            f"{where}: got NaN or infinity in {_names(broken)} of its {len(weights)} weights, read as {dtype}; "
            "download it again, or set another model.dtype"
        )


def _names(names: Collection[str]) -> str:
    return f"{len(names)} ({one_line(min(names))}{', ...' if len(names) > 1 else ''})"
