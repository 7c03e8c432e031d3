"""The distance from the base in changes of prompt, against numbers worked out by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

from lasro.functional.drift import (
    drift_distance,
    mean_square_between,
    mean_square_difference,
)


def test_mean_square_by_hand():
    """Guards against bytes that wrap around (10 - 250 is 16 in uint8) and against a broadcast 1x1 image."""
    a, b = torch.tensor([[10, 250]], dtype=torch.uint8), torch.tensor([[250, 250]], dtype=torch.uint8)
    assert mean_square_difference(a, b) == 240**2 / 2
    with pytest.raises(ValueError, match="same shape"):
        mean_square_difference(a, b[:, :1])


def test_the_distance_between_prompts_is_that_of_all_pairs():
    """Guards the identity with the variance: pairs of one with itself, or n where it is n - 1."""
    samples = [torch.tensor([0.0, 0.0]), torch.tensor([2.0, 0.0]), torch.tensor([4.0, 6.0])]
    pairs = [2.0, (16 + 36) / 2, (4 + 36) / 2]  # by hand: 0-1, 0-2, 1-2
    assert mean_square_between(iter(samples)) == pytest.approx(sum(pairs) / 3, abs=1e-12)
    draws = torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 100
    formed = [(a - b).square().mean().item() for a, b in itertools.combinations(draws, 2)]
    assert mean_square_between(draws) == pytest.approx(sum(formed) / len(formed), rel=1e-10)


@pytest.mark.parametrize(("samples", "expected"), [([], None), ([torch.ones(2)], None), ([torch.ones(2)] * 3, 0.0)])
def test_without_two_prompts_there_is_no_distance_between_them(samples, expected):
    """Guards against a division by zero, and against a yardstick of rounding errors."""
    assert mean_square_between(samples) == expected


def test_distance_and_error_by_hand():
    """Moved by 1 and 3 squared units of 8: sqrt(2/8) = 1/2; the mean's error is 1, so 1 / (2 * 8 * 1/2) = 1/8."""
    assert drift_distance([1.0, 3.0], 8.0) == (0.5, 0.125)
    assert drift_distance([2.0], 8.0) == (0.5, None)
    assert drift_distance([0.0, 0.0], 8.0) == (0.0, 0.0)
    assert drift_distance([8.0, 8.0], 8.0) == (1.0, 0.0)


@pytest.mark.parametrize("unit", [None, 0.0])
def test_a_base_without_diversity_gives_no_distance(unit):
    """Guards against infinity in drift.json."""
    assert drift_distance([1.0, 2.0], unit) == (None, None)
    assert drift_distance([], 1.0) == (None, None)
