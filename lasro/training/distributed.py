"""The processes that train one generator together, a GPU each: started by `accelerate launch` or `torchrun`.

All go through the same rounds. What is drawn is drawn as in a single process, by all of them; each takes its share of
the prompts, samples and scores it, and sums its gradient with the others'. So the number of processes changes how
long a run takes, and nothing of what it does. Files are written, services started and rounds told of by the first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from lasro.errors import ConfigError, LasroError, UnreachableError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(hours=2)
"""For the others. The first evaluates held-out prompts meanwhile; a process that died is noticed at once."""


class DistributedContext:
    """This process among its peers. All of them make the collective calls, in the same order; alone, none waits.

    torch is imported only among several: what collects samples needs none of it.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """This process's part of `total` items, in order; the parts differ by one item at most."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def all_gather(self, work: Callable[[], T]) -> list[T]:
        """What each process's `work` gives, in order. Where one raised a LasroError, all raise the first of them."""
        if self.count == 1:
            return [work()]
        import torch.distributed as dist

        outcome, outcomes = _outcome(work), [None] * self.count
        with _told_of_the_dead(self):
            dist.all_gather_object(outcomes, outcome)
        return [_value(outcome) for outcome in outcomes]

    def on_main_and_broadcast(self, work: Callable[[], T]) -> T:
        """What `work` gives in the first process, which alone does it; its LasroError is raised in all."""
        if self.count == 1:
            return work()
        import torch.distributed as dist

        outcome: list[Any] = [_outcome(work) if self.is_main else None]
        with _told_of_the_dead(self):
            dist.broadcast_object_list(outcome, src=0)
        return _value(outcome[0])

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Add the peers' to each tensor, in place; same shapes and dtype everywhere. One exchange for all of them."""
        tensors = list(tensors)
        if self.count == 1 or not tensors:
            return
        import torch
        import torch.distributed as dist

        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _told_of_the_dead(self):
            dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


@contextmanager
def processes() -> Iterator[DistributedContext]:
    """Join those that the launcher started, by its environment variables; alone where there are none.

    Raises UnreachableError where they do not find each other.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield DistributedContext()
        return
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else None
    if device is not None:
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device else "gloo", timeout=PATIENCE, device_id=device)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UnreachableError(f"processes: the {count} did not find each other at {where} ({error})") from error
    try:
        yield DistributedContext(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()


def on_one_machine() -> bool:
    """Whether the launcher started all processes here."""
    return os.environ.get("WORLD_SIZE", "1") == os.environ.get("LOCAL_WORLD_SIZE", "1")


def check_enough(name: str, got: int, peers: DistributedContext) -> None:
    """Raises ConfigError for a setting that leaves a process without work."""
    if got < peers.count:
        raise ConfigError(f"{name}: got {got}, expected at least {peers.count}, one for each process")


def _outcome(work: Callable[[], T]) -> T | LasroError:
    try:
        return work()
    except LasroError as error:
        return error


def _value(outcome: Any) -> Any:
    if isinstance(outcome, LasroError):
        raise outcome
    return outcome


@contextmanager
def _told_of_the_dead(peers: DistributedContext) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise UnreachableError(
            f"process {peers.rank} of {peers.count}: another one ended or cannot be reached ({error}); see what it "
            "said, then start all again: the run goes on from its checkpoint"
        ) from error
