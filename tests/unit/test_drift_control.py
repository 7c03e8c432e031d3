"""The drift that is allowed by now, and the weight that holds the generator there, against hand-computed numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lasro.functional.drift_control import (
    AGREEMENT,
    FASTEST,
    GROWTH,
    LEAST_RADIUS,
    RISE_SHARE,
    START_SHARE,
    STIFFNESS,
    drift_target,
    holding_weight,
    trust_radius,
)

shares = st.floats(0, 1)
positive = st.floats(1e-3, 10)


def test_the_target_rises_to_the_budget_and_stays() -> None:
    """Guards against a run that spends its budget in the first updates, as all did before there was a target."""
    assert drift_target(0.0, 0.4) == pytest.approx(START_SHARE * 0.4)
    assert drift_target(RISE_SHARE / 2, 0.4) == pytest.approx(0.4 * (1 + START_SHARE) / 2)
    assert drift_target(RISE_SHARE, 0.4) == drift_target(1.0, 0.4) == 0.4


@given(shares, shares, positive)
def test_the_target_never_falls_and_never_exceeds_the_budget(a: float, b: float, budget: float) -> None:
    """Guards against a target that sends the generator back."""
    first, second = (drift_target(share, budget) for share in sorted((a, b)))
    assert 0 < first <= second <= budget


def test_the_radius_follows_the_gain_by_its_errors() -> None:
    """Bug: the target rose whatever the reward did, out to where the surrogate had never been right."""
    assert trust_radius(0.1, gain=0.02, error=0.01, budget=0.4) == pytest.approx(0.1 * GROWTH)
    assert trust_radius(0.1, gain=0.9, error=0.01, budget=0.4) == pytest.approx(0.1 * GROWTH**FASTEST), "not faster"
    assert trust_radius(0.1, gain=0.01, error=0.01, budget=0.4) == pytest.approx(0.1 * GROWTH**0.5)
    assert trust_radius(0.1, gain=-0.02, error=0.01, budget=0.4) == pytest.approx(0.1 / GROWTH)
    assert trust_radius(0.1, gain=-0.9, error=0.01, budget=0.4) == pytest.approx(0.1 / GROWTH)
    assert trust_radius(0.1, gain=0.5, error=math.inf, budget=0.4) == 0.1, "one round says nothing yet"


def test_the_radius_follows_agreement_where_the_gain_differs_between_prompts() -> None:
    """Bug: a run whose surrogate was right of all 72 own and base's samples spent half its training near the base."""
    fastest = pytest.approx(0.1 * GROWTH**FASTEST)
    assert trust_radius(0.1, gain=0.013, error=0.006, budget=0.4, agreement=AGREEMENT) == fastest
    assert trust_radius(0.1, gain=0.012, error=0.006, budget=0.4, agreement=0.85) == pytest.approx(0.1 * GROWTH)
    assert trust_radius(0.1, gain=0.005, error=0.01, budget=0.4, agreement=1.0) == pytest.approx(0.1 * GROWTH**0.25)
    assert trust_radius(0.1, gain=-0.02, error=0.01, budget=0.4, agreement=1.0) == pytest.approx(0.1 / GROWTH), (
        "a loss that was foreseen is none the less a loss"
    )


@given(st.floats(0.05, 1), st.floats(-10, 10), st.floats(1e-12, 10), positive)
def test_the_radius_stays_within_the_budget_and_above_nothing(
    share: float, gain: float, error: float, budget: float
) -> None:
    """Guards against a radius of 0, from which no gain leads back."""
    assert LEAST_RADIUS * budget <= trust_radius(share * budget, gain, error, budget) <= budget


def test_the_weight_is_the_settings_own_within_the_distance_and_grows_beyond_it() -> None:
    """Guards against a regulariser that holds the generator back before it has spent anything."""
    assert holding_weight(1.0, 0.3**2, 0.3) == 1.0
    assert holding_weight(1.0, 0.1**2, 0.3) == 1.0
    assert holding_weight(1.0, 0.6**2, 0.3) == pytest.approx(1.0 + STIFFNESS / 0.3)
    assert holding_weight(0.0, 0.33**2, 0.3) == pytest.approx(STIFFNESS / 0.3 * 0.1)


@pytest.mark.parametrize("allowed", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("slope", [1.0, 4.0, 8.0])
def test_ascent_comes_to_rest_near_the_distance(allowed: float, slope: float) -> None:
    """Guards against a weight that is too soft to hold a generator, whatever the distance, or that throws it about.

    The known answer: ascending slope * x with L_reg = x^2 rests where 2 lambda(D) D = slope.
    """
    x = torch.tensor(1e-3, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([x], lr=0.02 * allowed)
    for _ in range(600):
        loss = holding_weight(0.0, x.item() ** 2, allowed) * x.square() - slope * x
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    rest = allowed * (1 + math.sqrt(1 + 2 * slope / STIFFNESS)) / 2
    assert x.item() == pytest.approx(rest, rel=0.03)
    assert rest < 1.25 * allowed
