"""What a round's log line says of its rewards, where the answer is known."""

from __future__ import annotations

import pytest

from lasro import wire
from lasro.config import RunSettings
from lasro.training.prompts import Prompt
from lasro.training.sampling import GroupSummary
from lasro_client.run.collect import Collected, reward_means


def scored(scores: list[float]) -> wire.GroupStatus:
    items = [
        wire.ScoredItem(scores={"any": wire.RewardValue(score=score, status=wire.Status.OK)}, total=None)
        for score in scores
    ]
    return wire.GroupStatus(group_id="g", state=wire.GroupState.SCORED, items=items, reward_calls=len(items))


@pytest.mark.parametrize("num_reference_seeds", [3, 1])
def test_gain_compares_a_sample_with_the_bases_of_its_own_noise(num_reference_seeds: int) -> None:
    """Bug: a gain over other seeds than the base drew, which says how lucky the seeds were and not what was learned."""
    stages, beside = [1] * 3 + [2] * 3, [False] * 6
    own = [0.9, 0.1, 0.2, 0.8, 0.3, 0.4]
    base = [0.7, 0.6, 0.5][:num_reference_seeds] + [0.75, 0.1, 0.2][:num_reference_seeds]
    outline = GroupSummary(
        Prompt("a red star"),
        stages + [1] * num_reference_seeds + [2] * num_reference_seeds,
        beside + [True] * 2 * num_reference_seeds,
        {},
    )
    config = RunSettings.model_validate(
        {"name": "x", "prompts": {"train": "unused", "held_out": "unused"}, "rewards": [{"name": "any"}]}
    )
    means = reward_means(Collected([outline] * 2, [scored(own + base)] * 2), config, {})
    assert means["reward"]["any"] == pytest.approx({"one_step": 0.4, "two_step": 0.5})
    if num_reference_seeds == 1:
        assert means["beside"] == pytest.approx({"one_step": 0.7, "two_step": 0.75})
        assert means["gain"] == pytest.approx({"one_step": 0.2, "two_step": 0.05})
    else:
        assert means["beside"] == pytest.approx({"one_step": 0.6, "two_step": 0.35})
        assert means["gain"] == pytest.approx({"one_step": -0.2, "two_step": 0.15})
