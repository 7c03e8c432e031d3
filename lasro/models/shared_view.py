"""A second view of a network over the same memory, for adapters of its own.

Modules that share the frozen weights of one network carry their own adapters, so nothing ever has to switch the active
adapter: a recomputed checkpoint block cannot run with the wrong one.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from lasro.models.quantization import as_plain_linear, float32_values

M = TypeVar("M", bound=nn.Module)


def shared_view(module: M) -> M:
    """A copy of the module tree over the very same parameters and buffers: no memory, and adapters of its own."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, memo={id(tensor): tensor for tensor in tensors})


def free_all_but(kept: nn.Module, *networks: nn.Module) -> None:
    """Put the parameters and buffers of these networks that are none of `kept` on the meta device, without memory."""
    used = {id(tensor) for tensor in (*kept.parameters(), *kept.buffers())}
    for module in (module for network in networks for module in network.modules()):
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None and id(tensor) not in used:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
                    own[name] = nn.Parameter(empty, requires_grad=False) if own is module._parameters else empty  # pyright: ignore[reportArgumentType]


def trainable_copy(module: M) -> M:
    """A copy with trainable parameters and buffers of its own, in float32, also of weights that are quantised."""
    own: dict[int, object] = {id(each): each.detach().to(torch.float32, copy=True) for each in module.buffers()}
    own |= {id(each): nn.Parameter(float32_values(each.detach())) for each in module.parameters()}
    copied = copy.deepcopy(module, memo=own)
    as_plain_linear(copied)
    return copied
