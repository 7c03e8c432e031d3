"""Frozen linear layers in 8 bits a weight, by torchao, with adapters in float32 on top as peft puts them.

torchao computes with the weight in the activations' dtype, and autograd would keep that copy of every layer until the
backward pass, which takes what was saved. So a layer keeps its 8 bits alone and widens them a second time on the way
back.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lasro.config import ModelSettings
from lasro.errors import ModelError


class _FrozenLinear(torch.autograd.Function):
    """x W^T + b with a gradient to x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Any, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        with torch.autocast(x.device.type, enabled=False):
            return linear(x, weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return gradient @ ctx.weight.dequantize(gradient.dtype), None, None


class QuantizedLinear(nn.Linear):
    """A linear layer whose weight is a tensor of torchao. It trains nothing itself."""

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        x = input.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else input
        found = _FrozenLinear.apply(x, self.weight, self.bias)
        assert isinstance(found, Tensor)
        return found


def quantize(network: Any, settings: ModelSettings) -> None:
    """Quantise the linear layers of a frozen network in place, as the settings say; raises ModelError.

    It is marked as diffusers marks a network that it has read in 8 bits, so that peft knows.
    """
    if settings.quantization is None:
        return
    if importlib.util.find_spec("torchao") is None:
        raise ModelError(
            f"quantization: got {settings.quantization}, but torchao is not installed; pip install 'lasro[quantize]', "
            "or leave it out"
        )
    from diffusers.quantizers.auto import DiffusersAutoQuantizer
    from diffusers.quantizers.quantization_config import TorchAoConfig

    torchao: Any = importlib.import_module("torchao.quantization")
    kind = torchao.Int8WeightOnlyConfig()
    torchao.quantize_(network, kind)
    for module in network.modules():
        if type(module) is nn.Linear:
            module.weight.requires_grad_(False)
            module.__class__ = QuantizedLinear
    network.hf_quantizer = DiffusersAutoQuantizer.from_config(TorchAoConfig(kind))


def check_fusable(settings: ModelSettings) -> None:
    """Raises ModelError for quantised weights: a whole model is written from those that were published."""
    if settings.quantization is not None:
        raise ModelError(
            f"quantization: got {settings.quantization}, but an adapter is added to whole weights; leave "
            "model.quantization out"
        )


def float32_values(weight: Any) -> Tensor:
    """A copy of a weight's values, also of one that is quantised."""
    values: Tensor = cast(Any, weight).dequantize() if is_traceable_wrapper_subclass(weight) else weight
    return values.to(torch.float32, copy=True)


def as_plain_linear(network: nn.Module) -> None:
    """Have the linear layers, whose weights are whole again, compute as any other."""
    layers: list[Any] = [module for module in network.modules() if type(module) is QuantizedLinear]
    for layer in layers:
        layer.__class__ = nn.Linear
