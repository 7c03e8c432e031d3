"""Samples of earlier rounds, kept to learn from: the newest ones, each a few latents of one prompt with a weight.

Shape legend: N entries kept, M latents of each, B drawn, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lasro.training.prompts import Prompt

LATENTS = "stored_latents"


class Stored(NamedTuple):
    """Some entries: latents [B, M, C, H, W], weights float32 [B]."""

    prompts: list[Prompt]
    latents_BMCHW: Tensor
    weights_B: Tensor


class SampleStore:
    """`state` and `tensors` are all that a resume needs. Latents are float16, on the CPU."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._prompts: list[Prompt] = []
        self._weights: list[float] = []
        self._latents: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._prompts)

    def add(self, prompt: Prompt, latents_MCHW: Tensor, weight: float = 1.0) -> None:
        """Keep an entry, in place of the oldest where there are too many."""
        self._prompts = [*self._prompts, prompt][-self._capacity :]
        self._weights = [*self._weights, weight][-self._capacity :]
        self._latents = [*self._latents, latents_MCHW.to("cpu", torch.float16)][-self._capacity :]

    def draw(self, count: int, draws: torch.Generator) -> Stored:
        """`count` entries, distinct as far as there are enough."""
        order = torch.randperm(len(self), generator=draws).tolist()
        chosen = [order[i % len(order)] for i in range(count)]
        latents_BMCHW = torch.stack([self._latents[i] for i in chosen]).float()
        return Stored(
            [self._prompts[i] for i in chosen], latents_BMCHW, torch.tensor([self._weights[i] for i in chosen])
        )

    def state(self) -> dict[str, Any]:
        """For JSON."""
        return {"prompts": [list(prompt) for prompt in self._prompts], "weights": self._weights}

    def tensors(self) -> dict[str, Tensor]:
        """Latents [N, M, C, H, W]; nothing of an empty store."""
        return {LATENTS: torch.stack(self._latents)} if self._latents else {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`; `load_tensors` comes next, unless it is empty."""
        self._prompts = [Prompt(*each) for each in state["prompts"]]
        self._weights, self._latents = list(state["weights"]), []

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from `tensors()`."""
        self._latents = list(tensors[LATENTS]) if tensors else []


def best_first(totals: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Where the finite totals of several tensors [N] are, the highest first: (which tensor, which row)."""
    known = [
        (total, which, row)
        for which, totals_N in enumerate(totals)
        for row, total in enumerate(totals_N.tolist())
        if total == total  # not NaN
    ]
    return [(which, row) for _, which, row in sorted(known, key=lambda each: (-each[0], each[1:]))]
