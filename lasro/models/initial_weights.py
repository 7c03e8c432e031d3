"""Initial weights that depend on a seed alone: peft and torch draw them from a generator that all threads share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """What is made within draws its weights from `seed`, one thread after another; the generator is left as it was."""
    with _lock, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
