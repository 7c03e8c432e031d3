"""When a run is said to be in trouble: a model that is being ruined is, one that is only noisy is not."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from lasro.config import HealthSettings
from lasro_client.run.divergence import DivergenceMonitor, Figures

NOISE = 0.053
"""Standard deviation of one round's gain in the demo: 9 samples a stage, both stages averaged."""


def troubles(gain: Callable[[int], float], rounds: int, seed: int) -> dict[bool, int]:
    """The first round in trouble, by whether it is better to go back."""
    draws, monitor, first = random.Random(seed), DivergenceMonitor(HealthSettings()), {}
    for round in range(rounds):
        monitor.observe(round, Figures(gain(round) + draws.gauss(0, NOISE), 0.2, 0.2))
        if (trouble := monitor.trouble()) is not None:
            first.setdefault(trouble.go_back, round)
    return first


def share(gain: Callable[[int], float], rounds: int, go_back: bool = True, runs: int = 100) -> float:
    return sum(go_back in troubles(gain, rounds, seed) for seed in range(runs)) / runs


def rises(round: int) -> float:
    """As the demo did: to +0.04 within fifty rounds, then level."""
    return 0.04 * min(1, round / 50)


def dips(round: int) -> float:
    """As a demo with too high a rate did: far below the base for fifty rounds, above it when the rate had fallen."""
    return -0.15 * min(1, round / 30) + 0.004 * max(0, round - 60)


def test_noise_is_no_trouble():
    """Guards against healthy runs being ended by chance, at the noise that a round has."""
    assert share(rises, 125) == share(rises, 125, go_back=False) == 0
    assert share(lambda _: 0.0, 300) <= 0.02
    assert share(lambda round: rises(round) - 0.02 * (round > 80), 125) <= 0.02, "half of the gain is still there"


def test_a_model_that_falls_from_a_gain_goes_back_soon():
    """Guards against a run that spends its budget on undoing what it had reached."""
    found = [troubles(lambda r: 0.06 * min(1, r / 40) if r < 60 else 0.66 - 0.01 * r, 125, seed) for seed in range(50)]
    assert sum(first.get(True, 999) <= 85 for first in found) >= 48
    assert all(first for first in found), "the others are told of: their gain had never been sure"


def test_a_model_below_the_base_is_told_of_but_goes_on():
    """Guards against ending a run that recovers when its rate falls: its averaged weights were better all along."""
    assert share(dips, 125, go_back=False) == 1
    assert share(dips, 125) == 0


def test_the_best_window_is_known_by_its_last_round():
    """Guards against a rollback to weights of the decline itself."""
    monitor = DivergenceMonitor(HealthSettings(window_rounds=3))
    gains = [0.0, 0.1, 0.2, 0.3, 0.2, 0.0, -0.3, -0.3]
    assert [monitor.observe(round, Figures(gain, None, None)) for round, gain in enumerate(gains)] == [
        False, False, True, True, True, False, False, False,
    ]  # fmt: skip
    assert monitor.best.round == 4
    assert monitor.best.gain == pytest.approx(0.7 / 3)


def test_a_surrogate_that_ranks_no_longer_is_trouble():
    """Guards against climbing a surrogate that lost touch; one that never had it is judged by the reward alone."""
    settings = HealthSettings(window_rounds=4)
    for early, expected in ((0.3, True), (1.0, False)):
        monitor = DivergenceMonitor(settings)
        for round, gap in enumerate([early] * 4 + [1.0] * 4):
            monitor.observe(round, Figures(None, gap, None))
        trouble = monitor.trouble()
        assert (trouble is not None and "gap 1.00" in trouble.reason) == expected


def test_drift_over_the_limit_is_trouble():
    """Guards against a reward that rises while every image becomes the same one."""
    monitor = DivergenceMonitor(HealthSettings(window_rounds=4))
    for round, drift in enumerate([0.1, 0.9, 0.9, 0.6]):
        monitor.observe(round, Figures(1.0, 0.1, drift))
        assert monitor.trouble() is None
    monitor.observe(4, Figures(1.0, 0.1, 0.9))
    trouble = monitor.trouble()
    assert trouble is not None
    assert trouble.go_back
    assert "drifted 0.82" in trouble.reason
    assert "raise method.regulariser_weight" in trouble.reason, "a run that is ended says what to do"


def test_rounds_without_a_figure_are_no_trouble():
    """Guards against None being taken for 0: warm-up rounds have no gain, and failed rewards give none."""
    monitor = DivergenceMonitor(HealthSettings(window_rounds=2))
    for round in range(9):
        monitor.observe(round, Figures(None, None, None))
        assert monitor.trouble() is None


def test_a_new_window_is_needed_after_a_roll_back():
    """Guards against rolling back again at once, for the rounds that were rolled back for."""
    monitor = DivergenceMonitor(HealthSettings(window_rounds=2, decline_errors=1.0))
    for round, gain in enumerate([0.5] * 20 + [-0.5, -0.5]):
        monitor.observe(round, Figures(gain, None, None))
    assert monitor.trouble() is not None
    monitor.rolled_back()
    monitor.observe(22, Figures(-0.5, None, None))
    assert monitor.trouble() is None
    assert monitor.roll_backs == 1


def test_state_goes_through_json_and_changes_nothing():
    """Guards against a resumed run that is judged otherwise than one that was not interrupted."""
    draws, settings = random.Random(3), HealthSettings(window_rounds=5, decline_errors=2.0)
    whole, resumed = DivergenceMonitor(settings), DivergenceMonitor(settings)
    for round in range(60):
        figures = Figures(draws.gauss(0.02, 0.05), draws.random(), None)
        fresh = DivergenceMonitor(settings)
        fresh.load(json.loads(json.dumps(resumed.state())))
        resumed = fresh
        assert whole.observe(round, figures) == resumed.observe(round, figures)
        assert whole.trouble() == resumed.trouble()
    assert whole.best == resumed.best
