"""What every call of a generator is given beside latents: what the prompts became, and the step of the sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """What prompts become for B samples: tensors [B, ...] by names that only their family knows; no gradient."""

    tensors: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        return Conditioning({name: change(rows) for name, rows in self.tensors.items()})

    def repeat_each(self, counts: int | Tensor) -> Conditioning:
        """Each row `counts` times in a row; a tensor int64 [B] has a count for each."""
        return self._each(lambda rows: rows.repeat_interleave(counts, 0))

    def rows(self, chosen_B: Tensor | slice) -> Conditioning:
        """Those that a mask, indices or a slice name."""
        return self._each(lambda rows: rows[chosen_B])

    def float(self) -> Conditioning:
        """In float32."""
        return self._each(lambda rows: rows.float())


@dataclass(frozen=True)
class SamplingStep:
    """One step of a sampler. `index` counts from 0; `time` is the family's own: a timestep or a noise level."""

    index: int
    time: float
