"""The convolutions of a UNet whose rounding to 16 bits reaches the clean latents: computed in float32.

f_theta divides the network's output by sqrt(abar_t), 0.068 at the first step, so what is rounded there comes out 14.6
times as large. At high noise the output is nearly the input again, carried to it by the residual stream of the highest
resolution. Three kinds of convolutions write to that stream: the first, the shortcuts of the last up block, and the
last. They are a few thousandths of a UNet's arithmetic. All others add to the stream, and may round what they add.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Float32Conv2d(nn.Conv2d):
    """A convolution in float32 whatever its weights and autocast say.

    Its output is float32, too, where what comes after takes it: with weights of 16 bits only CUDA's autocast does.
    """

    def forward(self, input: Tensor) -> Tensor:
        takes_float32 = self.weight.dtype == torch.float32 or (input.is_cuda and torch.is_autocast_enabled("cuda"))
        output = self._in_float32(input)
        return output if takes_float32 else output.to(self.weight.dtype)

    def _in_float32(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return self._conv_forward(input.float(), self.weight.float(), bias)


class Float32OutputConv2d(Float32Conv2d):
    """The same with a float32 output always: nothing of 16 bits comes after it."""

    def forward(self, input: Tensor) -> Tensor:
        return self._in_float32(input)


def compute_ends_in_float32(unet: Any) -> None:
    """Change these convolutions of a UNet, in place. Names, weights, and all results in float32 stay as they are."""
    shortcuts = [resnet.conv_shortcut for resnet in unet.up_blocks[-1].resnets]
    for module in (unet.conv_in, *shortcuts):
        _become(module, Float32Conv2d)
    _become(unet.conv_out, Float32OutputConv2d)


def _become(module: nn.Module | None, kind: type[Float32Conv2d]) -> None:
    if type(module) is nn.Conv2d:  # a resnet without a change of width has no shortcut
        module.__class__ = kind
