"""What a round's record says of its rewards, where the answer is known."""

from __future__ import annotations

import pytest

from lasro import wire
from lasro.config import RunSettings
from lasro.training.prompts import Prompt
from lasro.training.sampling import GroupSummary
from lasro_client.run.collect import Collected, record_rewards
from lasro_client.run.round_record import Means


def scored(scores: list[float]) -> wire.GroupStatus:
    items = [
        wire.ScoredItem(scores={"any": wire.RewardValue(score=score, status=wire.Status.OK)}, total=None)
        for score in scores
    ]
    return wire.GroupStatus(group_id="g", state=wire.GroupState.SCORED, items=items, reward_calls=len(items))


def values(means: Means) -> list[float]:
    return [value for value in means.values() if value is not None]


@pytest.mark.parametrize("num_reference_seeds", [3, 1])
def test_gain_compares_a_sample_with_the_bases_of_its_own_noise(num_reference_seeds: int) -> None:
    """Bug: a gain over other seeds than the base drew, which says how lucky the seeds were and not what was learned."""
    stages, is_reference = [1] * 3 + [2] * 3, [False] * 6
    own = [0.9, 0.1, 0.2, 0.8, 0.3, 0.4]
    base = [0.7, 0.6, 0.5][:num_reference_seeds] + [0.75, 0.1, 0.2][:num_reference_seeds]
    group = GroupSummary(
        Prompt("a red star"),
        stages + [1] * num_reference_seeds + [2] * num_reference_seeds,
        is_reference + [True] * 2 * num_reference_seeds,
        {},
    )
    config = RunSettings.model_validate(
        {"name": "x", "prompts": {"train": "unused", "held_out": "unused"}, "rewards": [{"name": "any"}]}
    )
    found = record_rewards(Collected([group] * 2, [scored(own + base)] * 2), config.reward_objective, {})
    assert values(found.rewards["any"]) == pytest.approx([0.4, 0.5])
    if num_reference_seeds == 1:
        assert values(found.reference) == pytest.approx([0.7, 0.75])
        assert values(found.gain) == pytest.approx([0.2, 0.05])
    else:
        assert values(found.reference) == pytest.approx([0.6, 0.35])
        assert values(found.gain) == pytest.approx([-0.2, 0.15])
