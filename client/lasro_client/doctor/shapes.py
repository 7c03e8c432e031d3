"""A model of shapes alone: all that computes is there, its tensors have no memory, and no weights are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from lasro.config import BackboneModelSettings, ModelSettings
from lasro.models.base import GeneratorModel
from lasro.models.device import pick_device
from lasro.models.quantization import quantized_bytes
from lasro.models.registry import load_shapes
from lasro.models.sharding import gathered_bytes


class Part(NamedTuple):
    """One network of a pipeline."""

    name: str
    kind: str
    parameters: int
    bytes: int
    """Of weights and buffers, in the settings' dtype."""
    copied_bytes: int
    """Of those that a CPU keeps a second time, in another memory format than the file that is mapped into memory."""
    gathered_bytes: int = 0
    """Of those that are whole at one time where they lie in pieces at several processes."""

    def held_bytes(self, processes: int) -> int:
        """In each of so many that share it out; one holds it whole."""
        if processes == 1:
            return self.bytes + self.copied_bytes
        return -(-self.bytes // processes) + self.gathered_bytes


class Shapes(NamedTuple):
    """A model of shapes, and the mode in which new tensors are shapes too."""

    model: GeneratorModel
    mode: FakeTensorMode
    parts: list[Part]

    @contextmanager
    def active(self) -> Iterator[None]:
        """New tensors are shapes too, and modules are converted as far as shapes can be."""
        kind = type(self.model)
        with self.mode, patch.object(nn.Module, "_apply", _apply), patch.object(kind, "steps", _by_values(kind.steps)):
            yield


def _by_values(steps: Callable[..., Any]) -> Callable[..., Any]:
    """A sampler's steps are numbers, which stock schedulers read off tensors of their own: these keep their values."""

    def found(model: GeneratorModel, num_steps: int) -> Any:
        with _disable_current_modes():
            return steps(model, num_steps)

    return found


def shapes_of(settings: ModelSettings, mode: FakeTensorMode | None = None) -> Shapes:
    """The model of these settings, of a backbone its trunk; raises ModelError for one that `load_model` would refuse by
    its configuration. `mode`: of the shapes that it is computed with, where there are others."""
    mode = mode or FakeTensorMode(allow_non_fake_inputs=True)
    device, found = pick_device(settings.device), dict[str, nn.Module]()

    def without_memory(networks: dict[str, nn.Module]) -> None:
        with mode:
            for network in networks.values():
                _apply(network, lambda tensor: torch.empty_like(tensor, device=device))
        found.update(networks)

    uncompiled = settings.model_copy(update={"compile": False})
    with patch.object(nn.Module, "_apply", _apply):
        model = load_shapes(uncompiled, without_memory)
    if isinstance(settings, BackboneModelSettings):
        model.keep_only_trunk()
    quantised = {} if settings.quantization is None else {"unet": settings.quantization}
    parts = [_part(name, each, device.type == "cpu", quantised.get(name)) for name, each in found.items()]
    return Shapes(model, mode, parts)


def _apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """As torch's own, which swaps such tensors in place, and cannot while anything refers to them weakly."""
    if recurse:
        for child in self.children():
            _apply(child, fn)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                found = fn(parameter)
            if found is not parameter:
                self._parameters[name] = nn.Parameter(found, parameter.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = fn(buffer)
    return self


def _part(name: str, network: Any, on_cpu: bool, quantization: str | None) -> Part:
    parameters = [each for each in network.parameters() if each.device.type != "meta"]
    weights = [*parameters, *(each for each in network.buffers() if each.device.type != "meta")]
    copied = [weight for weight in weights if weight.ndim == 4 and max(weight.shape[2:]) > 1]
    return Part(
        name,
        type(network).__name__,
        sum(parameter.numel() for parameter in parameters),
        sum(weight.nbytes for weight in weights) - (0 if quantization is None else _saved(network, quantization)),
        sum(weight.nbytes for weight in copied) if on_cpu and name in ("unet", "vae") else 0,
        gathered_bytes(network) if name == "unet" else 0,
    )


def _saved(network: nn.Module, quantization: str) -> int:
    """Bytes that linear layers need less."""
    layers = [each.weight for each in network.modules() if isinstance(each, nn.Linear)]
    return sum(w.nbytes - quantized_bytes(w, quantization) for w in layers if w.device.type != "meta")
