"""S in float64, by hand, and its moments for batches of any size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lasro.functional.score_normalisation import (
    LEAST_FREEDOM,
    OWN_FREEDOM,
    Moments,
    Scale,
    deviation,
    normalise_and_clip,
    score_scale,
    update_moments,
)

F64 = torch.float64


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def known(mean: float, std: float, count: float = 100.0, maximum: float = 0.0) -> Moments:
    """Of `count` equal weights."""
    return Moments(mean, std**2, count, count, maximum, maximum)


def test_moments_move_by_hand() -> None:
    """Bug: batches' own deviations were averaged. Scores 1, 3 weigh 0.5 each when 8 comes: the mean is
    (0.5 + 1.5 + 8) / 2 = 5, the variance (0.5 * 16 + 0.5 * 4 + 9) / 2 = 9.5, sum of squared weights 1.5."""
    first = update_moments(None, tensor(1, 3), 0.5)
    assert first == Moments(2.0, 1.0, 2.0, 2.0, 1.0, 1.0)
    moved = update_moments(first, tensor(8), 0.5)
    assert moved == pytest.approx(Moments(5.0, 9.5, 2.0, 1.5, 1.0, 3.0))
    assert moved.freedom == pytest.approx(2 - 1.5 / 2)
    assert deviation([moved]) == pytest.approx(math.sqrt(2 * 9.5 / 1.25))


def test_the_maximum_fades_and_leaves_out_the_newest_batch_by_hand() -> None:
    """Guards against a maximum that holds the score it divides, so that nothing is ever clipped: 3 counts from the
    next batch on, and fades to 0.5 * 3 after another one, which 2 of the batch between then beats."""
    moments = Moments(0.0, 1.0, 9.0, 9.0, 0.25, 3.0)
    moved = update_moments(moments, tensor(2.0, -2.0), 0.5)
    assert (moved.maximum, moved.newest_maximum) == (3.0, 2.0)
    assert update_moments(moved, tensor(0.0), 0.5).maximum == 2.0


def test_equal_weights_give_the_usual_deviation() -> None:
    """Guards against a biased variance: with nothing forgotten it is that of all scores together, over N - 1."""
    scores = torch.randn(12, dtype=F64, generator=torch.Generator().manual_seed(0))
    moments = None
    for part in scores.split([1, 4, 2, 5]):
        moments = update_moments(moments, part, 1.0)
    assert moments is not None
    assert moments.mean == pytest.approx(scores.mean().item())
    assert deviation([moments]) == pytest.approx(scores.std().item())


@settings(max_examples=24, derandomize=True)
@given(
    count=st.integers(1, 16),
    momentum=st.floats(0.8, 0.98),
    mean=st.floats(-100, 100),
    std=st.floats(0.1, 30),
    seed=st.integers(0, 99),
)
def test_batches_of_any_size_come_to_the_deviation_of_the_scores(
    count: int, momentum: float, mean: float, std: float, seed: int
) -> None:
    """Bug: one score an update read 0, so that S's slope was -5e5 once and then 0; four read 0.8 of the truth.

    Averaged over time: of the last 10 scores alone no deviation can be told to 15 %.
    """
    draws = torch.Generator().manual_seed(seed)
    scores = torch.randn(400, count, dtype=F64, generator=draws) * std + mean
    moments, found = None, []
    for batch in scores:
        moments = update_moments(moments, batch, momentum)
        found.append(moments)
    settled = found[100:]
    assert sum(deviation([each]) for each in settled) / len(settled) == pytest.approx(std, rel=0.15)
    assert sum(each.mean for each in settled) / len(settled) == pytest.approx(mean, abs=0.3 * std)


@settings(max_examples=30)
@given(
    scores=st.lists(st.lists(st.floats(-1, 1), min_size=1, max_size=3), min_size=1, max_size=6),
    momentum=st.floats(0, 1),
    level=st.sampled_from([0.0, 1.0, 500.0]),
)
def test_a_few_scores_have_no_slope_of_a_hundred_thousand(
    scores: list[list[float]], momentum: float, level: float
) -> None:
    """Bug: the first update of one two-step sample had a slope of -5e5. Constant scores have none either."""
    moments = None
    for batch in scores:
        moments = update_moments(moments, tensor(*batch) * 0 + level, momentum)
        scale = score_scale(moments, [moments], "deviation", 3.0)
        assert scale.width == math.inf
        assert normalise_and_clip(tensor(*batch), scale).abs().max() == 0
    one = update_moments(None, tensor(scores[0][0]), momentum)
    assert score_scale(one, [one], "deviation", 3.0).width == math.inf
    assert score_scale(one, [one], "maximum", 3.0).width == math.inf


def test_a_step_with_few_scores_takes_the_width_of_all_by_hand() -> None:
    """Guards against a two-step term without a scale for its first dozen updates, where one in eight takes that step.

    Five scores of deviation 2 (squares 20, freedom 4) and one: sqrt(20 / 4); its own mean stays.
    """
    many, one = Moments(7.0, 4.0, 5.0, 5.0, 3.5, 3.5), Moments(1.0, 0.0, 1.0, 1.0, 0.5, 0.5)
    assert score_scale(one, [many, one], "deviation", 3.0) == pytest.approx(Scale(1.0, math.sqrt(5), 3.0))
    assert score_scale(one, [many, one], "maximum", 3.0) == Scale(1.0, 3.5, 1.0)
    own = known(1.0, 0.5, OWN_FREEDOM + 1)
    assert score_scale(own, [many, own], "deviation", 3.0).width == pytest.approx(0.5 * math.sqrt(9 / 8))
    few = known(1.0, 0.5, LEAST_FREEDOM)
    assert score_scale(few, [few], "deviation", 3.0).width == math.inf, "freedom 1 is too little"


def test_scores_are_normalised_and_clipped() -> None:
    """Guards against clipping before normalising: (9 - 1) / 2 = 4 is clipped to 3, (3 - 1) / 2 = 1 is not."""
    assert normalise_and_clip(tensor(9, 3, -9), Scale(1.0, 2.0, 3.0)).tolist() == [3.0, 1.0, -3.0]
    by_maximum = score_scale(known(1.0, 2.0, maximum=4.0), [], "maximum", 3.0)
    assert normalise_and_clip(tensor(9, 3, -3), by_maximum).tolist() == [1.0, 0.5, -1.0]


def test_normalising_passes_gradcheck() -> None:
    """Guards against a scale that takes part in the gradient, or a slope other than 1 / width inside the clip."""
    scores = tensor(0.5, 2.0, 9.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda R: normalise_and_clip(R, Scale(1.0, 2.0, 3.0)), (scores,))
    (slope,) = torch.autograd.grad(normalise_and_clip(scores, Scale(1.0, 2.0, 3.0)).sum(), scores)
    assert slope.tolist() == [0.5, 0.5, 0.0]
