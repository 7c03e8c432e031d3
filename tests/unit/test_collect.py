"""What a round's record says of its rewards, where the answer is known."""

from __future__ import annotations

import pytest

from lasro import wire
from lasro.config import RunSettings
from lasro.functional.reward_totals import RewardObjective
from lasro.training.group_summary import GroupSummary
from lasro.training.prompts import Prompt
from lasro_client.run.collect import Collected
from lasro_client.run.round_means import record_rewards
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
    assert (found.samples, found.scored_samples, found.failures) == (2 * len(own + base), 2 * len(own + base), {})
    assert values(found.rewards["any"]) == pytest.approx([0.4, 0.5])
    if num_reference_seeds == 1:
        assert values(found.reference) == pytest.approx([0.7, 0.75])
        assert values(found.gain) == pytest.approx([0.2, 0.05])
    else:
        assert values(found.reference) == pytest.approx([0.6, 0.35])
        assert values(found.gain) == pytest.approx([-0.2, 0.15])


def test_a_round_records_what_failing_rewards_said() -> None:
    """Bug: only the number of failed samples reached the log; why they failed stayed in the reward API's."""

    def item(dead: float | None, alive: float | None) -> wire.ScoredItem:
        def value(score: float | None) -> wire.RewardValue:
            status = wire.Status.OK if score is not None else wire.Status.HTTP_ERROR
            error = None if score is not None else "HTTP 424:\nthe licence has run out"
            return wire.RewardValue(score=score, status=status, error=error)

        return wire.ScoredItem(scores={"dead": value(dead), "alive": value(alive)}, total=None)

    items = [item(None, 0.5), item(None, 0.1), item(0.3, 0.2), item(0.4, None)]
    status = wire.GroupStatus(group_id="g", state=wire.GroupState.SCORED, items=items, reward_calls=8)
    group = GroupSummary(Prompt("a red star"), [1, 1, 2, 2], [False] * 4, {})
    collected = Collected([group], [status])
    found = record_rewards(collected, RewardObjective({"dead": 1.0, "alive": 1.0}), {})
    assert (found.samples, found.scored_samples) == (4, 1)
    assert {name: (each.samples, str(each)) for name, each in found.failures.items()} == {
        "dead": (2, "http_error: HTTP 424: the licence has run out"),
        "alive": (1, "http_error: HTTP 424: the licence has run out"),
    }
    assert collected.has_total(["dead", "alive"])
    assert not Collected([group], [status.model_copy(update={"items": items[:2]})]).has_total(["dead"])
