"""The loss that a model was distilled by, whatever its family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

SOLVER_STEPS = 50
"""Of the solver that a distillation loss takes one step of."""


class DistillationLoss(Protocol):
    """The loss that a model was distilled by."""

    def __call__(
        self,
        z_BCHW: Tensor,
        noise_BCHW: Tensor,
        steps_B: Tensor,
        prompts: Sequence[str],
        recompute: bool = False,
        weights_B: Tensor | None = None,
    ) -> Tensor:
        """Their mean loss, a scalar whose gradient reaches the adapter; each weighted by `weights_B` where given.

        `steps_B`: solver steps, int64, 0 to SOLVER_STEPS - 1 counted from the clean end; 0 is the one that ends at
        timestep 0. With `recompute` no activations are held: backward computes them once more.
        """
        ...
