"""Initial weights where several threads make them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from lasro.models.initial_weights import drawn_from


def made(barrier: threading.Barrier, seed: int) -> list[torch.Tensor]:
    barrier.wait()
    with drawn_from(seed):
        return [nn.Linear(64, 64).weight.detach() for _ in range(50)]


def test_each_thread_draws_what_its_seed_says() -> None:
    """Bug: two runs that begin at the same time at one trainer draw from one generator, each the other's numbers."""
    barrier, before = threading.Barrier(2), torch.random.get_rng_state()
    with ThreadPoolExecutor(2) as executor:
        together = [found.result() for found in [executor.submit(made, barrier, seed) for seed in (1, 2)]]
    alone = [made(threading.Barrier(1), seed) for seed in (1, 2)]
    for one, other in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)
