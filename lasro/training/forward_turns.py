"""Forward passes that all processes have to make together, although each has its own share of the work.

Where a network's weights lie in pieces (`lasro.models.sharding`), each process gives its own to every forward pass.
What the others compute then does not matter to it. So before a forward pass the processes tell one another who has one
to make. One that has none, because its share is done or the main process is at work alone, makes one of no use.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from lasro.training.distributed import DistributedContext, report_lost_process


class ForwardTurns:
    """Of one network in this process; `fill_in` makes a forward pass of no use. Raises UnreachableError."""

    def __init__(self, network: nn.Module, fill_in: Callable[[], object], peers: DistributedContext) -> None:
        self._fill_in, self._peers = fill_in, peers
        self._is_filling_in = False
        network.register_forward_pre_hook(self._announce, prepend=True)  # before the one that gathers weights

    def finish(self) -> None:
        """Take part in the forward passes of the others until all processes have come here."""
        self._is_filling_in = True
        try:
            while self._count(False) > 0:
                self._fill_in()
        finally:
            self._is_filling_in = False

    def _announce(self, *_: object) -> None:
        if not self._is_filling_in:
            self._count(True)

    def _count(self, has_one: bool) -> int:
        """How many processes have a forward pass to make."""
        total = torch.tensor([int(has_one)])
        with report_lost_process(self._peers):
            dist.all_reduce(total)
        return int(total)
