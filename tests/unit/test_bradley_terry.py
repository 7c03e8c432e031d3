"""Ranking by hand-computed numbers, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lasro import wire
from lasro.functional.bradley_terry import (
    bradley_terry_loss,
    count_ties,
    pair_accuracy,
    pair_kinds,
    rank_correlation,
    ranked_pairs,
)

F64 = torch.float64


def pairs(*args: object, **kwargs: object) -> set[tuple[int, int]]:
    winners, losers = ranked_pairs(*args, **kwargs)  # type: ignore[arg-type]
    return set(zip(winners.tolist(), losers.tolist(), strict=True))


def test_all_pairs_of_a_prompt_are_ranked() -> None:
    """Guards against swapping winner and loser, and against pairing ties: 0.5 and 0.51 differ by the margin only."""
    rewards, num_steps = torch.tensor([0.1, 0.5, 0.51, 0.9], dtype=F64), torch.tensor([1, 1, 2, 2])
    assert pairs(rewards, num_steps, 0.02) == {(1, 0), (2, 0), (3, 0), (3, 1), (3, 2)}


def test_pairs_within_a_number_of_steps() -> None:
    """Guards against learning to tell one-step from two-step samples instead of good from bad."""
    rewards, num_steps = torch.tensor([0.1, 0.5, 0.51, 0.9], dtype=F64), torch.tensor([1, 1, 2, 2])
    assert pairs(rewards, num_steps, 0.02, within_num_steps=True) == {(1, 0), (3, 2)}


def test_failed_rewards_are_in_no_pair() -> None:
    """Guards against a failed reward counting as the worst one."""
    rewards = torch.tensor([0.1, math.nan, 0.9], dtype=F64)
    assert pairs(rewards, torch.tensor([1, 1, 1]), 0.0) == {(2, 0)}


def test_ties_by_hand() -> None:
    """Guards against failed samples counted as ties: of 0.1, 0.5, 0.51, 0.52 and a failed one, three pairs tie."""
    rewards, num_steps = torch.tensor([0.1, 0.5, 0.51, 0.52, math.nan], dtype=F64), torch.tensor([1, 1, 2, 2, 2])
    assert count_ties(rewards, num_steps, 0.025) == 3
    assert count_ties(rewards, num_steps, 0.025, within_num_steps=True) == 1
    assert count_ties(rewards, num_steps, 0.0) == 0


def test_kinds_of_pairs_by_hand() -> None:
    """Guards against pairs of other noise counted with those of the same: only these move as a generator moves them."""
    samples = {
        0: (1, 0, 0, False), 1: (1, 1, 0, False), 2: (2, 0, 0, False), 3: (2, 0, 1, False), 4: (2, 1, 0, False),
        5: (1, 0, 0, True), 6: (2, 0, 0, True), 7: (2, 0, 1, True),
    }  # fmt: skip
    num_steps, seeds, draws, reference = map(torch.tensor, zip(*samples.values(), strict=True))
    all_pairs = [(i, j) for i in samples for j in range(i)]
    winners, losers = (torch.tensor(side) for side in zip(*all_pairs, strict=True))
    kinds = pair_kinds(num_steps, seeds, draws, reference, winners, losers)
    found = {kind: {all_pairs[p] for p in chosen.nonzero()[:, 0].tolist()} for kind, chosen in kinds.items()}
    assert found == {
        "across_seeds": {(1, 0), (2, 1), (3, 1), (4, 0), (4, 2), (4, 3)},
        "same_z1": {(3, 2), (7, 6)},
        "between_steps": {(2, 0), (3, 0), (4, 1), (6, 5), (7, 5)},
        "reference_one_step": {(5, 0)},
        "reference_two_step": {(6, 2), (7, 3)},
    }
    assert tuple(kinds) == wire.PAIR_KINDS[:5]
    others = pair_kinds(torch.where(num_steps == 1, 4, 8), seeds, draws, reference, winners, losers)
    assert tuple(others) == (*wire.PAIR_KINDS[:3], "reference_four_step", "reference_eight_step")
    assert set(others) <= set(wire.PAIR_KINDS)
    assert all(torch.equal(a, b) for a, b in zip(kinds.values(), others.values(), strict=True))


def test_loss_by_hand() -> None:
    """Guards against a sum for a mean: score differences 1 and -2 give (log(1+e^-1) + log(1+e^2)) / 2."""
    scores = torch.tensor([1.0, 0.0, 3.0], dtype=F64)
    loss = bradley_terry_loss(scores, torch.tensor([0, 0]), torch.tensor([1, 2]))
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2)


def test_loss_passes_gradcheck() -> None:
    """Guards against a gradient that is not that of the loss."""
    scores = torch.randn(5, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    winners, losers = torch.tensor([0, 1, 4]), torch.tensor([2, 3, 0])
    assert torch.autograd.gradcheck(lambda s: bradley_terry_loss(s, winners, losers), (scores,))


def test_no_pairs_give_a_loss_of_zero_and_no_nan() -> None:
    """Guards against the mean of nothing, which is NaN and would enter the optimiser."""
    scores = torch.ones(3, dtype=F64, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    loss = bradley_terry_loss(scores, none, none)
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert scores.grad.tolist() == [0, 0, 0]
    assert pair_accuracy(scores.detach(), none, none) is None


def test_accuracy_counts_ties_half() -> None:
    """Guards against a constant surrogate reading as right or as wrong."""
    scores = torch.tensor([1.0, 1.0, 0.0], dtype=F64)
    assert pair_accuracy(scores, torch.tensor([0, 0, 2]), torch.tensor([1, 2, 1])) == pytest.approx(0.5)


def test_rank_correlation_by_hand() -> None:
    """Guards against Pearson in place of Spearman: ranks 1 2 3 4 against 1 2 4 3 give 1 - 6*2/(4*15) = 0.8."""
    scores = torch.tensor([0.0, 1.0, 10.0, 100.0], dtype=F64)
    assert rank_correlation(scores, torch.tensor([1.0, 2.0, 4.0, 3.0], dtype=F64)) == pytest.approx(0.8)
    assert rank_correlation(scores, torch.ones(4, dtype=F64)) is None
    assert rank_correlation(scores[:2], torch.ones(2, dtype=F64)) is None


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(0, 2))
def test_perfect_scores_rank_every_pair(rewards: list[float], margin: float) -> None:
    """Guards against pairs whose order does not follow the reward."""
    rewards_N = torch.tensor(rewards, dtype=F64)
    winners, losers = ranked_pairs(rewards_N, torch.ones(len(rewards), dtype=torch.int64), margin)
    assert pair_accuracy(rewards_N, winners, losers) in (None, 1.0)
    assert ((rewards_N[winners] - rewards_N[losers]) > margin).all()
