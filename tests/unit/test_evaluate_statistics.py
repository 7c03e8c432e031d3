"""Means, standard errors and paired differences against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasro.errors import StorageError, WireError
from lasro_client.evaluation.paired_statistics import compare, estimate, paired_difference, ratio_of_means
from lasro_client.evaluation.result import (
    Evaluation,
    load_evaluation,
    save_evaluation,
    summary_table,
)
from lasro_client.evaluation.score_prompts import batch_size

scores = st.lists(st.none() | st.floats(-10, 10), min_size=1, max_size=30)


def evaluation(one_step, two_step, seed=7):
    prompts = [f"prompt {i}" for i in range(len(one_step))]
    return Evaluation(prompts=prompts, seed=seed, rewards={"binding": {1: one_step, 2: two_step}})


def test_standard_error_of_a_mean():
    """1, 2, 3, 4: deviation sqrt(5/3), over sqrt(4). Guards against dividing by n instead of n - 1."""
    result = estimate([1, 2, 3, 4])
    assert (result.mean, result.n, result.failed) == (2.5, 4, 0)
    assert result.sem == pytest.approx(math.sqrt(5 / 12))


def test_failed_items_are_left_out_not_zero():
    """A failed reward counted as 0 would pull the mean to 1.5."""
    assert estimate([2, None, 1, None, 3]).mean == 2
    assert estimate([2, None, 1, None, 3]).failed == 2


def test_too_few_items_give_none_not_nan():
    """NaN would not survive JSON, and a standard error of 0 from one item would claim certainty."""
    assert estimate([]).as_dict() == {"mean": None, "sem": None}
    assert estimate([None]).as_dict() == {"mean": None, "sem": None}
    assert estimate([3.0]).as_dict() == {"mean": 3.0, "sem": None}


def test_paired_error_ignores_what_prompts_share():
    """Differences 1, 1, 4: mean 2, deviation sqrt(3), error 1, however far apart the prompts lie."""
    result = paired_difference([0, 100, -50], [1, 101, -46])
    assert (result.mean, result.n) == (2, 3)
    assert result.sem == pytest.approx(1)


def test_items_failed_in_either_are_dropped_from_all_three_figures():
    """Means over different items would not differ by the difference beside them."""
    result = compare([1, None, 3, 9], [2, 5, None, 12])
    assert (result.before.mean, result.after.mean, result.difference.mean) == (5, 7, 2)
    assert (result.difference.n, result.difference.failed, result.before.failed) == (2, 2, 2)
    assert result.difference.sem == pytest.approx(1)


@given(scores, st.randoms())
def test_after_minus_before_is_the_difference(before, random):
    """Holds for any pattern of failures."""
    after = [random.choice([None, random.uniform(-10, 10)]) for _ in before]
    result = compare(before, after)
    if result.before.mean is not None and result.after.mean is not None:
        assert result.after.mean - result.before.mean == pytest.approx(result.difference.mean, abs=1e-9)
    assert result.difference.n + result.difference.failed == len(before)


def test_unequal_lengths_are_an_error():
    """zip without strict would compare the wrong prompts silently."""
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([1, 2], [1])


def test_ratio_of_means_by_hand():
    """2 + 4 over 4 + 8 is 1/2; residuals over mean(b) = 6 are 0 and 0 there, +-1/6 with 3 and 3 instead."""
    exact = ratio_of_means([2, 4], [4, 8])
    assert (exact.mean, exact.sem) == (0.5, 0)
    spread = ratio_of_means([3, 3], [4, 8])
    assert spread.mean == 0.5
    assert spread.sem == pytest.approx(1 / 6)
    assert ratio_of_means([1], [0]).mean is None


def test_summary_table_by_hand():
    """The table of summary.json: what the demo prints and outside checks read."""
    before = evaluation([0.1, 0.3, None], [0.5, 0.5, 0.5])
    after = evaluation([0.2, 0.6, 0.9], [0.6, 0.6, 0.9])
    table = summary_table(before, after)["binding"]
    assert table["one_step"]["n"] == 2
    assert table["one_step"]["failed"] == 1
    assert table["one_step"]["before"]["mean"] == pytest.approx(0.2)
    assert table["one_step"]["difference"] == {"mean": pytest.approx(0.2), "sem": pytest.approx(0.1)}
    assert table["two_step"]["after"]["mean"] == pytest.approx(0.7)
    assert table["two_step"]["before"]["sem"] == 0


def test_other_prompts_or_seeds_are_refused():
    """A difference between different draws is not paired."""
    with pytest.raises(WireError, match="same"):
        summary_table(evaluation([1], [1], seed=1), evaluation([1], [1], seed=2))


def test_an_evaluation_survives_its_file(tmp_path):
    """None must come back as None, and a cut file must be named rather than half read."""
    path = tmp_path / "evaluation" / "before.json"
    save_evaluation(path, evaluation([0.1, None], [0.25, 1.0]))
    assert load_evaluation(path) == evaluation([0.1, None], [0.25, 1.0])
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(StorageError, match=r"before\.json"):
        load_evaluation(path)


def test_batches_shrink_with_the_latents():
    """A batch that fits at 16x16 would not fit a GPU at 128x128."""
    assert [batch_size((4, side, side)) for side in (16, 64, 128, 512)] == [32, 16, 4, 1]
