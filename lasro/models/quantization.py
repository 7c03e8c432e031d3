"""Frozen linear layers in 8 or 4 bits a weight, by torchao, with adapters in float32 on top as peft puts them.

4 bits are the 16 values of NF4, scaled in blocks of weights by scales of 8 bits (QLoRA: Dettmers et al., arXiv
2305.14314, section 3). To peft such a layer is a linear layer like any other; it refuses torchao's integers of 4 bits,
which no CPU computes with either.

torchao computes with the weight in the activations' dtype, and autograd would keep that copy of every layer until the
backward pass, which takes what was saved. So a layer keeps its bits alone and widens them a second time on the way
back.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lasro.config import ModelSettings
from lasro.errors import ModelError

NF4_BLOCK, NF4_SCALES = 64, 256
"""Weights that share a scale, and scales that share one: torchao's own."""
LEAST_SCALES = 16
"""That share one; a layer with a number of blocks that no such groups divide stays as it is."""


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
        return gradient @ _widened(ctx.weight, gradient.dtype), None, None


class QuantizedLinear(nn.Linear):
    """A linear layer whose weight is a tensor of torchao. It trains nothing itself."""

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        x = input.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else input
        found = _FrozenLinear.apply(x, self.weight, self.bias)
        assert isinstance(found, Tensor)
        return found


def quantize(network: Any, settings: ModelSettings) -> None:
    """Quantise the linear layers of a frozen network in place, as the settings say; raises ModelError."""
    if settings.quantization is None:
        return
    if importlib.util.find_spec("torchao") is None:
        raise ModelError(
            f"quantization: got {settings.quantization}, but torchao is not installed; pip install 'lasro[quantize]', "
            "or leave it out"
        )
    (_to_8_bits if settings.quantization == "8bit" else _to_4_bits)(network)
    for module in network.modules():
        if type(module) is nn.Linear and is_traceable_wrapper_subclass(module.weight):
            module.weight.requires_grad_(False)
            module.__class__ = QuantizedLinear


def _to_8_bits(network: Any) -> None:
    """It is marked as diffusers marks a network that it has read in 8 bits, so that peft knows."""
    from diffusers.quantizers.auto import DiffusersAutoQuantizer
    from diffusers.quantizers.quantization_config import TorchAoConfig

    torchao: Any = importlib.import_module("torchao.quantization")
    kind = torchao.Int8WeightOnlyConfig()
    torchao.quantize_(network, kind)
    network.hf_quantizer = DiffusersAutoQuantizer.from_config(TorchAoConfig(kind))


def _to_4_bits(network: nn.Module) -> None:
    torchao: Any = importlib.import_module("torchao.quantization")
    for module in network.modules():
        if type(module) is nn.Linear and (scales := nf4_scales(module.weight)) is not None:
            weight = torchao.NF4Tensor.from_tensor(module.weight.detach(), NF4_BLOCK, scales)
            module.weight = nn.Parameter(weight, requires_grad=False)


def nf4_scales(weight: Tensor) -> int | None:
    """How many scales share one in 4 bits; None for a weight that stays as it is."""
    blocks, rest = divmod(weight.numel(), NF4_BLOCK)
    scales = math.gcd(blocks, NF4_SCALES)
    return None if rest or scales < LEAST_SCALES else scales


def quantized_bytes(weight: Tensor, quantization: str) -> int:
    """What a linear layer's weight takes then: with a scale for each output in 8 bits, for each block in 4."""
    if quantization == "8bit":
        return weight.numel() + len(weight) * weight.itemsize
    if (scales := nf4_scales(weight)) is None:
        return weight.nbytes
    blocks, values_and_mean = weight.numel() // NF4_BLOCK, 16 + 1
    return weight.numel() // 2 + blocks + (blocks // scales + values_and_mean) * weight.itemsize


def check_fusable(settings: ModelSettings) -> None:
    """Raises ModelError for quantised weights: a whole model is written from those that were published."""
    if settings.quantization is not None:
        raise ModelError(
            f"quantization: got {settings.quantization}, but an adapter is added to whole weights; leave "
            "model.quantization out"
        )


def float32_values(weight: Any) -> Tensor:
    """A copy of a weight's values, also of one that is quantised."""
    return _widened(weight, torch.float32).to(torch.float32, copy=True)


def _widened(weight: Any, dtype: torch.dtype) -> Tensor:
    """The values in that dtype of a weight that is quantised, or the weight."""
    if not is_traceable_wrapper_subclass(weight):
        return weight
    quantised: Any = weight
    if hasattr(quantised, "get_original_weight"):  # NF4, whose `dequantize` is that of its codes
        return quantised.get_original_weight().to(dtype)
    return quantised.dequantize(dtype)


def as_plain_linear(network: nn.Module) -> None:
    """Have the linear layers, whose weights are whole again, compute as any other."""
    layers: list[Any] = [module for module in network.modules() if type(module) is QuantizedLinear]
    for layer in layers:
        layer.__class__ = nn.Linear
