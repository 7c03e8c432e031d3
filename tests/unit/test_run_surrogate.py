"""What a run without a surrogate records in place of one."""

from __future__ import annotations

import math

import pytest

from lasro.functional.reward_totals import RewardObjective
from lasro.wire import AdaptStatistics, GroupState, GroupStatus, RewardValue, ScoredItem, Status
from lasro_client.run.run_surrogate import NoSurrogate


def item(**rewards: float | None) -> ScoredItem:
    """As the reward API answers for a group: its total is the sum of all rewards, whatever the run's weights are."""
    values = {
        name: RewardValue(score=value, status=Status.TIMEOUT if value is None else Status.OK)
        for name, value in rewards.items()
    }
    known = [value for value in rewards.values() if value is not None]
    return ScoredItem(scores=values, total=sum(known) if len(known) == len(rewards) else None)


def adapted(groups: list[list[ScoredItem]], objective: RewardObjective, compares: bool) -> AdaptStatistics:
    scored = [GroupStatus(group_id="g", state=GroupState.SCORED, items=items, reward_calls=6) for items in groups]
    reply = NoSurrogate(objective, compares).adapt(scored, round=0, drift=None, steps=0, rate=1.0)
    assert reply.version == 0
    return reply.statistics


def test_only_samples_that_lack_a_required_reward_failed() -> None:
    """Bug: a run without a surrogate counted samples as failed that lack a reward which is only logged."""
    objective = RewardObjective({"wanted": 1.0, "logged": 0.0})
    items = [item(wanted=0.5, logged=1.0), item(wanted=None, logged=1.0), item(wanted=0.1, logged=None)]
    found = adapted([items, items], objective, compares=False)
    assert (found.failed_samples, found.constant_groups) == (2, 0)
    assert adapted([[item(wanted=None, logged=1.0)] * 3, items], objective, compares=False).constant_groups == 1


def test_what_compares_rewards_learns_nothing_from_equal_ones() -> None:
    """Guards against a run that spends its budget on a reward without grades: a method that compares finds no pair in
    equal totals, one that does not compare may go on."""
    objective = RewardObjective({"any": 1.0})
    equal, ranked = [item(any=0.5)] * 3, [item(any=0.5), item(any=0.5), item(any=0.7)]
    assert adapted([equal, equal], objective, compares=False).constant_groups == 0
    found = adapted([equal, ranked], objective, compares=True)
    assert (found.constant_groups, found.ranked_pairs, found.tied_pairs) == (1, 2, 4)


def test_rewards_are_normalised_over_the_round() -> None:
    """Bug: without a trainer, which says the scales, a normalised reward ended the run."""
    objective = RewardObjective({"any": 1.0}, normalised=["any"])
    found = adapted([[item(any=1.0), item(any=3.0)], [item(any=5.0), item(any=7.0)]], objective, compares=True)
    assert found.scales["any"].mean == 4.0
    assert found.scales["any"].deviation == pytest.approx(math.sqrt(2))
