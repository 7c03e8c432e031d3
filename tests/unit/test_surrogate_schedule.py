"""The surrogate's learning rate by hand."""

from __future__ import annotations

import pytest

from lasro.config import SurrogateSettings
from lasro_surrogate_trainer.adaptation import learning_rate


def test_learning_rate_by_hand() -> None:
    """Guards against a warm-up that starts at zero, or a decay that goes on past its end and rises again."""
    settings = SurrogateSettings(learning_rate=1e-3, warmup_steps=10, decay_steps=100)
    assert learning_rate(settings, 5) == pytest.approx(0.5e-3 * (0.05 + 0.95 * 0.5 * (1 + 0.9876883405951378)))
    assert learning_rate(settings, 50) == pytest.approx(0.525e-3)
    assert learning_rate(settings, 100) == learning_rate(settings, 200) == pytest.approx(0.05e-3)
    constant = SurrogateSettings(learning_rate=1e-3, warmup_steps=10)
    assert learning_rate(constant, 1) == pytest.approx(1e-4)
    assert learning_rate(constant, 10_000) == 1e-3
