"""What a drift budget asks of an update, by images and latents whose distances are known."""

from __future__ import annotations

import json

import pytest

from lasro.functional.drift import drift_distance
from lasro.functional.drift_control import FASTEST, FIRST_RADIUS, GROWTH
from lasro_client.run.drift_budget import ROUNDS, DriftBudget, largest
from lasro_client.run.round_estimate import Estimate

UNKNOWN = Estimate.of([])


def test_a_distance_of_latents_is_the_target_by_what_the_rounds_showed() -> None:
    """Guards against a ratio upside down: images that move half as far as latents leave these twice as much room."""
    drift = DriftBudget(0.4)
    assert drift.distance(0.3) == 0.3, "before there is a round, latents and images are taken to move alike"
    drift.observe(0.1, 0.2)
    assert drift.distance(0.3) == pytest.approx(0.6)
    drift.observe(0.4, 0.2)
    assert drift.distance(0.3) == pytest.approx(0.3), "the geometric mean of 1/2 and 2"


def test_old_rounds_and_rounding_say_nothing() -> None:
    """Bug: the first update moves nothing that can be measured, and its ratio, 0 or infinity, stays in the mean."""
    drift = DriftBudget(0.4)
    for measured in ((None, 0.2), (0.2, None), (0.0, 0.2), (0.2, 1e-5), (None, None)):
        drift.observe(*measured)
    assert drift.distance(0.3) == 0.3
    for _ in range(ROUNDS):
        drift.observe(0.8, 0.1)
    for _ in range(ROUNDS):
        drift.observe(0.1, 0.2)
    assert drift.distance(0.3) == pytest.approx(0.6)


def test_the_target_rises_to_what_may_be_spent() -> None:
    """Guards against a pilot that spends the whole budget, and against a budget that is never spent."""
    drift = DriftBudget(0.4)
    targets = [drift.advance(share) for share in (0.0, 0.3, 0.6, 1.0)]
    assert targets == pytest.approx([0.1, 0.25, 0.4, 0.4])
    pilot = DriftBudget(0.4)
    assert [pilot.advance(share, 0.5) for share in (0.0, 0.3, 1.0)] == pytest.approx([0.1, 0.2, 0.2])
    resumed = DriftBudget(0.4)
    resumed.load(json.loads(json.dumps(pilot.state())))
    for each in (pilot, resumed):
        assert each.advance(0.0) == pytest.approx(0.2), "training goes on from where the pilot stands"
        each.begin_again()
        assert each.advance(0.0) == pytest.approx(0.1)


def test_from_nothing_the_target_is_within_a_trust_radius() -> None:
    """Bug: a pilot was taken to three quarters of the budget, where a surrogate that was right near the base was not,
    and what it would have gained there was never seen."""
    drift = DriftBudget(0.4, from_nothing=True)
    assert drift.advance(1.0) == pytest.approx(FIRST_RADIUS * 0.4)
    for _ in range(3):
        drift.trust(Estimate(0.02, 0.01), UNKNOWN)
    assert drift.advance(1.0) == pytest.approx(FIRST_RADIUS * 0.4 * GROWTH**3)
    drift.trust(Estimate(-0.05, 0.01), UNKNOWN)
    resumed = DriftBudget(0.4, from_nothing=True)
    resumed.load(json.loads(json.dumps(drift.state())))
    assert resumed.advance(1.0) == drift.advance(1.0) == pytest.approx(FIRST_RADIUS * 0.4 * GROWTH**2)
    drift.trust(Estimate(0.02, 0.01), Estimate(0.97, 0.02))
    assert drift.advance(1.0) == pytest.approx(FIRST_RADIUS * 0.4 * GROWTH ** (2 + FASTEST)), "ranked right for sure"
    drift.begin_again()
    assert drift.advance(1.0) == pytest.approx(FIRST_RADIUS * 0.4)
    with_surrogate = DriftBudget(0.4)
    with_surrogate.load({"ratios": []})
    assert with_surrogate.advance(1.0) == 0.4, "a run that was begun before goes on as it was"


def test_no_budget_holds_nothing() -> None:
    """Guards against a weight that rises in a run which asked for no limit."""
    drift = DriftBudget(None)
    drift.observe(0.1, 0.2)
    assert drift.advance(0.5) is None
    assert drift.distance(drift.advance(0.5)) is None


def test_a_resumed_run_goes_on_by_the_same_ratio() -> None:
    """Guards against a checkpoint that forgets it, after which the next updates are held elsewhere."""
    drift, resumed = DriftBudget(0.4), DriftBudget(0.4)
    drift.observe(0.1, 0.2)
    resumed.load(json.loads(json.dumps(drift.state())))
    for each in (drift, resumed):
        each.observe(0.3, 0.4)
    assert resumed.state() == drift.state()
    assert resumed.distance(0.3) == drift.distance(0.3)
    drift.begin_again()
    assert drift.distance(0.3) == 0.3


def test_drift_of_images_by_hand() -> None:
    """Guards against a mean of roots: squares 1 and 3 have the mean 2, a quarter of 8."""
    assert drift_distance([1.0, 3.0], 8.0)[0] == 0.5
    assert drift_distance([], 8.0)[0] is None
    assert drift_distance([1.0], None)[0] is None
    assert drift_distance([1.0], 0.0)[0] is None, "a base that draws everything alike has no unit"
    assert largest([0.2, None, 0.3]) == 0.3
    assert largest([None, None]) is None
