"""How a learning rate rises and falls: a pure function."""

from __future__ import annotations

import math

FINAL_SHARE = 0.05


def learning_rate(peak: float, step: int, warmup_steps: int, decay_steps: int | None) -> float:
    """Of the optimiser's `step`, counted from 1: linear warm-up, then constant or a cosine down to a twentieth."""
    warm = min(1.0, step / warmup_steps)
    if decay_steps is None:
        return peak * warm
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / decay_steps)))
    return peak * warm * (FINAL_SHARE + (1 - FINAL_SHARE) * cosine)
