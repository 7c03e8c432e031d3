"""What a run without a surrogate records in place of one."""

from __future__ import annotations

from lasro.wire import GroupState, GroupStatus, RewardValue, ScoredItem, Status
from lasro_client.run.run_surrogate import NoSurrogate


def item(**rewards: float | None) -> ScoredItem:
    """As the reward API answers for a group: its total is the sum of all rewards, whatever the run's weights are."""
    values = {
        name: RewardValue(score=value, status=Status.TIMEOUT if value is None else Status.OK)
        for name, value in rewards.items()
    }
    known = [value for value in rewards.values() if value is not None]
    return ScoredItem(scores=values, total=sum(known) if len(known) == len(rewards) else None)


def test_only_samples_that_lack_a_required_reward_failed() -> None:
    """Bug: a run without a surrogate counted samples as failed that lack a reward which is only logged."""
    items = [item(wanted=0.5, logged=1.0), item(wanted=None, logged=1.0), item(wanted=0.1, logged=None)]
    scored = [GroupStatus(group_id="g", state=GroupState.SCORED, items=items, reward_calls=6)] * 2
    reply = NoSurrogate(["wanted"]).adapt(scored, round=0, drift=None, steps=0, rate=1.0)
    assert reply.statistics.failed_samples == 2
    assert reply.version == 0
    assert reply.statistics.constant_groups == 0
    dead = scored[0].model_copy(update={"items": [item(wanted=None, logged=1.0)] * 3})
    assert (
        NoSurrogate(["wanted"])
        .adapt([dead, scored[0]], round=1, drift=None, steps=0, rate=1.0)
        .statistics.constant_groups
        == 1
    )
