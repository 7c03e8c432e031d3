"""A network's frozen weights shared out among processes by torch's FSDP2: for a base that one device does not hold.

Each process keeps a piece of every weight. A block's are gathered from all when it is computed, in the forward pass and
in the backward pass, and let go after it. What is trained, the adapter, is whole in each.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


class WithoutAdapter:
    """The frozen base, where its weights lie in pieces: the adapted network itself, its adapter switched off meanwhile.

    Nothing may be recomputed in between; no backward pass runs while a prediction is made.
    """

    def __init__(self, network: Any) -> None:
        self._network = network

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self._network.disable_adapters()
        try:
            return self._network(*arguments, **options)
        finally:
            self._network.enable_adapters()


def shard_network(network: Any, device: torch.device) -> None:
    """Keep this process's pieces alone of all weights that are not trained, on `device`; in place.

    Block by block, as diffusers says what is not to be split, so that no more than one is whole on the device. From
    then on all processes of the default group have to make each forward and backward pass together.
    """
    trained = {parameter for parameter in network.parameters() if parameter.requires_grad}
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP takes no channels-last weights
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in [*_blocks(network), network]:
        fully_shard(part, mesh=mesh, reshard_after_forward=True, ignored_params=trained)


def _blocks(network: Any) -> list[nn.Module]:
    """What is gathered together, inner ones first; the network itself has what is in none of them."""
    kinds = tuple(network._no_split_modules or ())
    return [part for part in reversed(list(network.modules())) if type(part).__name__ in kinds]


def gathered_bytes(network: Any) -> int:
    """Of the weights that are whole at one time in a pass: the largest block's, the one fetched ahead, and the rest."""
    sizes, seen = [], set[int]()
    for part in [*_blocks(network), network]:
        own = [weight for weight in part.parameters() if id(weight) not in seen]
        seen.update(map(id, own))
        sizes.append(sum(weight.nbytes for weight in own))
    *blocks, rest = sizes
    return 2 * max(blocks, default=0) + rest


def held_bytes(network: nn.Module) -> int:
    """Bytes of the weights that this process keeps, the pieces of those that are shared out."""
    weights = [each.to_local() if isinstance(each, DTensor) else each for each in network.parameters()]
    return sum(weight.nbytes for weight in weights)
