"""Processes that train together, as threads of one: what they send each other is as with real ones, without a codec."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.easy_reward import linear_reward, train_rounds
from lasro.training.distributed import DistributedContext
from lasro.training.generator_trainer import GeneratorTrainer

T = TypeVar("T")


class ThreadPeers(DistributedContext):
    def __init__(self, rank: int, count: int, barrier: threading.Barrier, table: list[Any]) -> None:
        super().__init__(rank, count)
        self._barrier, self._table = barrier, table

    def _exchange(self, value: Any) -> list[Any]:
        self._table[self.rank] = value
        self._barrier.wait(60)
        found = list(self._table)
        self._barrier.wait(60)
        return found

    def all_gather(self, work: Callable[[], T], kind: Any) -> list[T]:
        return self._exchange(work())

    def on_main_and_broadcast(self, work: Callable[[], T], kind: Any) -> T:
        return self._exchange(work() if self.is_main else None)[0]

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        tensors = list(tensors)
        parts = self._exchange([tensor.clone() for tensor in tensors])
        for tensor, *values in zip(tensors, *parts, strict=True):
            tensor.copy_(sum(values))


def in_threads(count: int, work: Callable[[DistributedContext], T]) -> list[T]:
    """What `work` returns in each of so many processes; raises what one of them raised."""
    barrier, table = threading.Barrier(count), [None] * count
    peers = [ThreadPeers(rank, count, barrier, table) for rank in range(count)]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, peers))


def assert_processes_agree(trainer_for: Callable[[DistributedContext], GeneratorTrainer]) -> None:
    """Two processes train in two rounds of an easy reward what one trains by itself."""

    def trained(peers: DistributedContext) -> Tensor:
        trainer = trainer_for(peers)
        train_rounds(trainer, linear_reward(trainer.model), 2)
        return trainer.parameters[0].detach()

    alone = trained(DistributedContext())
    for each in in_threads(2, trained):
        torch.testing.assert_close(each, alone, rtol=1e-4, atol=1e-6)
