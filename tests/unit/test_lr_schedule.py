"""The learning rate by hand."""

from __future__ import annotations

import pytest

from lasro.functional.lr_schedule import learning_rate


def test_learning_rate_by_hand() -> None:
    """Guards against a warm-up that starts at zero, or a decay that goes on past its end and rises again."""
    assert learning_rate(1e-3, 5, 10, 100) == pytest.approx(0.5e-3 * (0.05 + 0.95 * 0.5 * (1 + 0.9876883405951378)))
    assert learning_rate(1e-3, 50, 10, 100) == pytest.approx(0.525e-3)
    assert learning_rate(1e-3, 100, 10, 100) == learning_rate(1e-3, 200, 10, 100) == pytest.approx(0.05e-3)
    assert learning_rate(1e-3, 1, 10, None) == pytest.approx(1e-4)
    assert learning_rate(1e-3, 10_000, 10, None) == 1e-3
