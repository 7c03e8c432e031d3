"""An audit's statistics against numbers worked out by hand, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lasro.config import RunSettings
from lasro.functional.bradley_terry import ranked_pairs
from lasro_client.audit.summary import _tie_margin
from lasro_client.evaluation.reward_spread import (
    Components,
    best_pair_accuracy,
    count_ties,
    prompt_means,
    ranked_groups,
    repeats_for,
    stage_share,
    variance_components,
)

NAN = float("nan")
rewards = arrays(np.float64, (2, 2, 3, 2), elements=st.sampled_from([0.0, 0.25, 0.26, 0.5, 1.0, NAN]))


def test_variances_of_a_balanced_design_by_hand():
    """Two groups of two images of two repeats; a divisor or coefficient off by one changes every figure.

    Groups {1 3, 5 7} and {11 13, 15 17}: repeats 2, 2, 2, 2 about their means: 8 / 4 = 2. Image means 2, 6 and 12, 16
    about 4 and 14, twice each: 2 * 16 / 2 = 16 = 2 + 2 s, so s = 7. Group means about 9: 4 * 50 / 1 = 200 = 16 + 4 g,
    so g = 46.
    """
    found = variance_components(np.array([[[1.0, 3], [5, 7]], [[11, 13], [15, 17]]]))
    assert (found.groups, found.images, found.repeats) == (46, 7, 2)
    assert found.signal_share == 7 / 9


def test_variances_of_an_unbalanced_design_by_hand():
    """A failed repeat counted as a number, or unequal counts treated as equal.

    Groups {1 3, 8} and {4 6, 5 5}: repeats (2 + 0 + 2 + 0) / (7 - 4) = 4 / 3. Image means 2, 8 about 4 with counts 2, 1
    and 5, 5 about 5: (8 + 16) / (4 - 2) = 12. n0 = (7 - (4 + 1) / 3 - (4 + 4) / 4) / 2 = 5 / 3, so
    s = (12 - 4 / 3) / (5 / 3) = 6.4. Group means 4, 5 about 32 / 7: 3 * (4 / 7)^2 + 4 * (3 / 7)^2 = 12 / 7, which is
    4 / 3 + k s + w g with k = 5 / 3 + 2 - 13 / 7 = 38 / 21: g is below zero, so 0.
    """
    found = variance_components(np.array([[[1, 3], [8, NAN], [NAN, NAN]], [[4, 6], [5, 5], [NAN, NAN]]]))
    assert found.repeats == pytest.approx(4 / 3)
    assert found.images == pytest.approx(6.4)
    assert found.groups == 0


def test_the_groups_of_an_unbalanced_design_by_hand():
    """The same with the second group 10 higher: means 4, 15 about 72 / 7 give 12 / 7 * 121; w = 7 - 25 / 7 = 24 / 7."""
    found = variance_components(np.array([[[1, 3], [8, NAN], [NAN, NAN]], [[14, 16], [15, 15], [NAN, NAN]]]))
    assert found.groups == pytest.approx((12 / 7 * 121 - 4 / 3 - 38 / 21 * 6.4) / (24 / 7))


def test_a_constant_has_no_signal_and_no_noise():
    """Rounding of a mean of 0.1 made a constant reward "vary" by 1e-17, and a share of that was reported."""
    found = variance_components(np.full((3, 5, 2), 0.1) + np.array([0.0, 0.6, 1e5])[:, None, None])
    assert (found.images, found.repeats, found.signal_share) == (0, 0, None)


def test_what_was_not_measured_is_none_not_zero():
    """Without repeats nothing is known of noise, which is not the same as none; without scores, of nothing."""
    assert variance_components(np.array([[[1.0], [2]], [[3], [4]]])) == Components(None, None, None)
    assert variance_components(np.full((2, 2, 2), NAN)) == Components(None, None, None)
    one_group = variance_components(np.array([[[1.0, 3], [5, 7]]]))
    assert (one_group.groups, one_group.images) == (None, 7)


def test_noise_alone_leaves_no_signal():
    """Images whose means happen to lie closer than chance must not get a negative variance."""
    found = variance_components(np.array([[[0.0, 1], [1, 0]], [[0, 1], [0, 1]]]))
    assert (found.images, found.repeats, found.signal_share) == (0, 0.5, 0)


def test_estimates_are_right_on_average():
    """With every third measurement missing at random: 4, 2.25 and 1, each within four standard errors."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(300):
        y = 2 * random.normal(size=(30, 1, 1)) + 1.5 * random.normal(size=(30, 5, 1)) + random.normal(size=(30, 5, 3))
        y[random.random(y.shape) < 1 / 3] = NAN
        components = variance_components(y)
        found.append((components.groups, components.images, components.repeats))
    error = np.std(found, axis=0) / math.sqrt(len(found))
    assert (np.abs(np.mean(found, axis=0) - (4, 2.25, 1)) < 4 * error).all()


def test_best_pair_accuracy_by_hand():
    """1/2 + arcsin(sqrt(share)) / pi: a coin at 0, 2/3 at 1/4, 3/4 at 1/2, certain at 1."""
    shares = (0.0, 0.25, 0.5, 1.0)
    assert [best_pair_accuracy(share) for share in shares] == pytest.approx([0.5, 2 / 3, 0.75, 1.0])


def test_best_pair_accuracy_by_lot():
    """The formula itself: how often noisy normal rewards order a pair as the true ones do."""
    random = np.random.default_rng(0)
    true, noise = random.normal(size=(2, 40_000)), random.normal(size=(2, 40_000)) * math.sqrt(3)
    right = (np.diff(true, axis=0) > 0) == (np.diff(true + noise, axis=0) > 0)
    assert right.mean() == pytest.approx(best_pair_accuracy(1 / 4), abs=0.01)


def test_repeats_for_a_share_by_hand():
    """s / (s + e / m) >= 0.8 with e = 2 s needs m = 8; rounding must not make that 9."""
    assert repeats_for(0.8, Components(None, 1.0, 2.0)) == 8
    assert repeats_for(0.8, Components(None, 0.1, 0.2)) == 8
    assert repeats_for(0.8, Components(None, 1.0, 2.01)) == 9
    assert repeats_for(0.8, Components(None, 1.0, 0.0)) == 1
    assert repeats_for(0.8, Components(None, 0.0, 1.0)) is None


def test_ties_by_hand():
    """0, 0.01, 0.5 and a failure: one tie of three pairs. A single score: no pair, no constant. Four equal: 6 ties."""
    found = count_ties(np.array([[[0], [0.01], [0.5], [NAN]], [[1], [NAN], [NAN], [NAN]], [[2], [2], [2], [2]]]), 0.02)
    assert (found.pairs, found.tied, found.groups, found.constant) == (9, 7, 2, 1)


def test_a_group_is_constant_only_if_no_repeat_ranks_it():
    """A noisy reward whose first repeats happen to agree is no constant one."""
    assert count_ties(np.array([[[1.0, 1], [1, 2]]]), 0.02).constant == 0


@given(rewards, st.booleans())
def test_ties_are_those_that_training_drops(rewards_PGKR, within_num_steps):
    """Whatever training ranks, and nothing else, must count as ranked."""
    found = count_ties(ranked_groups(rewards_PGKR, within_num_steps), 0.25)
    stages_N = torch.tensor([1, 1, 1, 2, 2, 2])
    ranked = sum(
        len(ranked_pairs(torch.tensor(rewards_PGKR[p, ..., r].ravel()), stages_N, 0.25, within_num_steps)[0])
        for p in range(2)
        for r in range(2)
    )
    assert found.pairs - found.tied == ranked


def test_the_stage_share_of_a_spread_by_hand():
    """Within a stage 0 and 1 (variance 0.5); together 0, 1, 3, 4 (10 / 3): 85 % is between the stages."""
    rewards_PGKR = np.array([[[[0.0, 0], [1, 1]], [[3, 3], [4, 4]]]])
    assert stage_share(rewards_PGKR) == pytest.approx(0.85)
    assert stage_share(np.ones((2, 2, 3, 2))) is None


def test_means_leave_out_what_failed():
    """A failed measurement counted as 0 would halve the mean; a prompt without any has none."""
    rewards_PGKR = np.array([[[[2, NAN], [4, 4]], [[1, 1], [1, 1]]], [[[NAN, NAN], [NAN, NAN]], [[0, 0], [1, 1]]]])
    assert prompt_means(rewards_PGKR[:, 0]) == [pytest.approx(10 / 3), None]
    assert prompt_means(rewards_PGKR[:, 1]) == [1, 0.5]


@pytest.mark.parametrize(("unit", "margin"), [("spread", 0.1 * math.sqrt(6)), ("absolute", 0.1 / 0.5)])
def test_the_tie_margin_is_in_units_of_the_reward(unit: str, margin: float) -> None:
    """Guards against an audit that counts other ties than the run will have.

    Each repeat is a measurement of its own, as a run makes one: two prompts of 1, 5 and of 2, 6 in one, 3, 3 and 0, 4
    in the other vary by 8 + 8 + 0 + 8 over 4 degrees of freedom, hence by sqrt(6).
    """
    config = RunSettings.model_validate(
        {
            "name": "x",
            "prompts": {"train": "unused", "held_out": "unused"},
            "rewards": [{"name": "r", "weight": 0.5}],
            "surrogate": {"tie_margin": 0.1, "tie_margin_unit": unit},
        }
    )
    rewards_PGKR = np.array([[[[1.0, 3.0]], [[5.0, 3.0]]], [[[2.0, 0.0]], [[6.0, 4.0]]]])
    assert _tie_margin(config, "r", rewards_PGKR) == pytest.approx(margin)
