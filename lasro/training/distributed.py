"""The processes that train one generator together, a GPU each: started by `accelerate launch` or `torchrun`.

All go through the same rounds. Each draws all random numbers as a single process would, samples and scores its share of
the prompts, and sums its gradient with the others'. So the number of processes changes how long a run takes, but not
its result. Only the main process, the first one, writes files, starts services and calls observers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from lasro.errors import ConfigError, LasroError, UnreachableError
from lasro.training.process_codec import decode, encode, encode_error

if TYPE_CHECKING:
    from torch import Tensor

    from lasro.training.forward_turns import ForwardTurns

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)
"""Of one exchange. The main process may evaluate held-out prompts meanwhile; one that died is noticed at once."""


class DistributedContext:
    """This process among its peers. All of them make the collective calls, in the same order; alone, none waits.

    Values cross as `process_codec` encodes them; `kind` is their type. torch is imported only among several processes.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count
        self.turns: ForwardTurns | None = None
        """Where forward passes are made together: whoever comes to an exchange first helps the others to get there."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes, starts services and calls observers."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """This process's part of `total` items, in order; the parts differ by one item at most."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def all_gather(self, work: Callable[[], T], kind: Any) -> list[T]:
        """What `work` returns in each process, in order. Where one raised a LasroError, all raise the first of them."""
        if self.count == 1:
            return [work()]
        own = _encode_outcome(work, kind)
        self.finish_turns()
        with report_lost_process(self):
            bodies = _all_gather_bytes(own, self.count)
        return [decode(body, kind) for body in bodies]

    def on_main_and_broadcast(self, work: Callable[[], T], kind: Any) -> T:
        """What `work` returns in the main process, the only one that does it; its LasroError is raised in all."""
        if self.count == 1:
            return work()
        own = _encode_outcome(work, kind) if self.is_main else b""
        self.finish_turns()
        with report_lost_process(self):
            body = _broadcast_bytes(own)
        return decode(body, kind)

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Sum each tensor over all processes, in place; same shapes and dtype everywhere. One exchange for all."""
        tensors = list(tensors)
        if self.count == 1 or not tensors:
            return
        import torch
        import torch.distributed as dist

        self.finish_turns()
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with report_lost_process(self):
            dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def finish_turns(self) -> None:
        """Wait until no process has a forward pass to make, and take part in those; nothing where each has its own."""
        if self.turns is not None:
            self.turns.finish()


@contextmanager
def processes() -> Iterator[DistributedContext]:
    """Join the processes that the launcher started, by its environment variables; a single one where there are none.

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
        dist.init_process_group("cpu:gloo,cuda:nccl" if device else "gloo", timeout=TIMEOUT, device_id=device)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UnreachableError(f"processes: the {count} did not find each other at {where} ({error})") from error
    try:
        peers = DistributedContext(dist.get_rank(), count)
        yield peers
        peers.finish_turns()
    finally:
        dist.destroy_process_group()


def on_one_machine() -> bool:
    """Whether the launcher started all processes here."""
    return os.environ.get("WORLD_SIZE", "1") == os.environ.get("LOCAL_WORLD_SIZE", "1")


def check_enough(name: str, got: int, peers: DistributedContext) -> None:
    """Raises ConfigError for a setting that leaves a process without work."""
    if got < peers.count:
        raise ConfigError(f"{name}: got {got}, expected at least {peers.count}, one for each process")


def _encode_outcome(work: Callable[[], object], kind: Any) -> bytes:
    try:
        return encode(work(), kind)
    except LasroError as error:
        return encode_error(error)


def _all_gather_bytes(own: bytes, count: int) -> list[bytes]:
    """Each process's bytes, in order. They may differ in length, so lengths go first and bodies are padded."""
    import torch
    import torch.distributed as dist

    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(count)]
    dist.all_gather(lengths, torch.tensor([len(own)]))
    sizes = [int(length) for length in lengths]
    padded = torch.zeros(max(sizes), dtype=torch.uint8)
    padded[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
    bodies = [torch.empty_like(padded) for _ in range(count)]
    dist.all_gather(bodies, padded)
    return [body[:size].numpy().tobytes() for body, size in zip(bodies, sizes, strict=True)]


def _broadcast_bytes(own: bytes) -> bytes:
    """The main process's bytes; the others' are not used."""
    import torch
    import torch.distributed as dist

    length = torch.tensor([len(own)])
    dist.broadcast(length, src=0)
    body = torch.frombuffer(bytearray(own), dtype=torch.uint8) if own else torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(body, src=0)
    return body.numpy().tobytes()


@contextmanager
def report_lost_process(peers: DistributedContext) -> Iterator[None]:
    """An exchange that fails becomes an UnreachableError."""
    try:
        yield
    except RuntimeError as error:
        raise UnreachableError(
            f"process {peers.rank} of {peers.count}: another one ended or cannot be reached ({error}); see what it "
            "said, then start all again: the run goes on from its checkpoint"
        ) from error
