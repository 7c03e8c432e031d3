"""A second view of a network over the same memory, for adapters of its own.

Modules that share the frozen weights of one network carry their own adapters, so nothing ever has to switch the active
adapter: a recomputed checkpoint block cannot run with the wrong one.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def shared_view(module: M) -> M:
    """A copy of the module tree over the very same parameters and buffers: no memory, and adapters of its own."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, memo={id(tensor): tensor for tensor in tensors})


def trainable_copy(module: M) -> M:
    """A copy with trainable parameters and buffers of its own, in float32."""
    own: dict[int, object] = {id(each): each.detach().to(torch.float32, copy=True) for each in module.buffers()}
    own |= {id(each): nn.Parameter(each.detach().to(torch.float32, copy=True)) for each in module.parameters()}
    return copy.deepcopy(module, memo=own)
