"""What makes training fast on a GPU, and changes nothing on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F, device: torch.device) -> F:
    """The function through torch.compile where there is a GPU."""
    return cast(F, torch.compile(function)) if device.type == "cuda" else function


def allow_fast_arithmetic(device: torch.device) -> None:
    """TF32 for what bfloat16 leaves in float32; the fastest convolution of those that there are."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
