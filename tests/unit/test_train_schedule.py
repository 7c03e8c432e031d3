"""When a run from nothing ranks, trains, begins again and ends."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest

from lasro.config import TrainSettings
from lasro_client.run.round_record import RoundRecord, SurrogateRecord
from lasro_client.run.train_schedule import (
    FEWEST_TRAINING_ROUNDS,
    HOPELESS_ROUNDS,
    PILOT_ROUNDS,
    PILOT_SHARE,
    Begin,
    End,
    Estimate,
    TrainSchedule,
)

NEVER = 10_000


def played(
    schedule: TrainSchedule,
    accuracies: Sequence[float | None],
    gains: Sequence[float | None] = (),
    first: int = 0,
    affordable: int | None = None,
) -> list[tuple[int, Begin | End]]:
    """What the schedule decided, after which round, counted from 1."""
    found = []
    for index, accuracy in enumerate(accuracies):
        record = RoundRecord(
            "train", first + index, surrogate=SurrogateRecord(fresh_pair_accuracy=accuracy, ranked_pairs=100)
        )
        gain = gains[index] if index < len(gains) else None
        step = schedule.observe(record, gain, affordable)
        if step is not None:
            found.append((first + index + 1, step))
    return found


def around(mean: float, count: int, spread: float = 0.05, seed: int = 0) -> list[float]:
    draws = random.Random(seed)
    return [mean + draws.uniform(-spread, spread) for _ in range(count)]


def test_an_easy_reward_is_ranked_for_few_rounds() -> None:
    """Guards against hundreds of calls for a reward that the surrogate knows after a hundred."""
    schedule = TrainSchedule(TrainSettings())
    ((round, step),) = played(schedule, [0.7, 0.85, 0.9])
    assert isinstance(step, Begin)
    assert (round, schedule.phase) == (3, "training")
    assert schedule.planned == 3 + FEWEST_TRAINING_ROUNDS


def test_a_hard_reward_is_ranked_as_long_as_that_improves() -> None:
    """Guards against a generator that spends its drift while the surrogate still ranks at random."""
    schedule = TrainSchedule(TrainSettings())
    rising = [0.5 + 0.01 * round for round in range(25)]
    ((round, _),) = played(schedule, rising + [0.74] * 20)
    assert 25 < round <= 40
    assert schedule.planned == 5 * round  # what is hard to rank takes long to follow


def test_noise_ends_the_run_and_says_so() -> None:
    """Guards against a model that was moved for nothing, by a reward that nothing can learn."""
    schedule = TrainSchedule(TrainSettings(rounds=40))
    steps = played(schedule, [0.5 + 0.04 * (-1) ** round for round in range(40)])
    assert isinstance(steps[0][1], End)
    assert steps[0][0] == 12  # three rounds in ten
    assert "noise" in steps[0][1].why
    assert "50.0%" in steps[0][1].why


def test_noise_does_not_cost_all_the_rounds_that_there_may_be() -> None:
    """Guards against thousands of calls for a reward of which the first hundreds have shown that nothing is in it."""
    steps = played(TrainSchedule(TrainSettings()), [0.5 + 0.03 * (-1) ** round for round in range(90)])
    assert [(round, type(step)) for round, step in steps][:1] == [(HOPELESS_ROUNDS, End)]


def test_rounds_of_few_pairs_weigh_little() -> None:
    """Guards against a round in which nearly all pairs tie, and whose accuracy is a matter of two images."""
    assert Estimate.of([0.8, 0.2], [300, 100]).mean == pytest.approx(0.65)
    assert Estimate.of([0.8, 0.2], [300, 100]).sem == pytest.approx((2 * (45**2 + 45**2)) ** 0.5 / 400)


def test_noise_that_passed_for_a_reward_at_first_moves_the_model_by_a_pilot_only() -> None:
    """Guards against a lucky streak that spends the whole drift budget."""
    schedule = TrainSchedule(TrainSettings())
    played(schedule, [0.8, 0.82, 0.81])
    assert schedule.phase == "training"
    assert schedule.pilot_share == PILOT_SHARE
    steps = played(schedule, [0.5 + 0.03 * (-1) ** n for n in range(20)], [0.01 * (-1) ** n for n in range(20)], 3)
    assert [type(step) for _, step in steps][:1] == [End]
    assert steps[0][0] == 3 + PILOT_ROUNDS


def test_a_gain_or_a_ranking_frees_the_whole_budget() -> None:
    """Guards against a pilot that never ends."""
    by_gain, by_ranking = TrainSchedule(TrainSettings()), TrainSchedule(TrainSettings())
    for schedule in (by_gain, by_ranking):
        played(schedule, [0.9, 0.9, 0.91])
    played(by_gain, [None] * 4, around(0.1, 4, 0.02), 3)
    played(by_ranking, around(0.7, 4), [None] * 4, 3)
    assert by_gain.pilot_share == by_ranking.pilot_share == 1.0


def test_a_fooled_generator_begins_again_a_stated_number_of_times() -> None:
    """Guards against a run that goes on from a generator which the surrogate misled."""
    schedule = TrainSchedule(TrainSettings(max_restarts=1))
    played(schedule, [0.9, 0.9, 0.91])
    steps = played(schedule, [0.6] * 30, around(-0.1, 30, 0.02), 3)
    restarts = [(round, step) for round, step in steps if isinstance(step, Begin)]
    assert len(restarts) == 1
    assert restarts[0][0] == 7
    assert restarts[0][1].is_restart
    assert "fooled" in restarts[0][1].why
    assert schedule.began == 7


def test_rounds_that_were_asked_for_are_made() -> None:
    """Guards against a plan that overrules the user."""
    schedule = TrainSchedule(TrainSettings(rounds=50))
    played(schedule, [0.9, 0.9, 0.91])
    assert schedule.planned is None


def test_calls_that_are_short_cut_ranking_and_training() -> None:
    """Guards against a budget that is spent before the generator moved at all."""
    schedule = TrainSchedule(TrainSettings())
    ((round, _),) = played(schedule, around(0.6, 10), affordable=10)
    assert round == 3
    assert schedule.planned == 3 + FEWEST_TRAINING_ROUNDS  # of which the budget allows 10


@pytest.mark.parametrize(
    "settings", [{"warmup_rounds": 0}, {"initial_surrogate": "bundled"}, {"rounds": 3}, {"warmup_rounds": 5}]
)
def test_explicit_stages_and_tiny_runs_train_at_once(settings: dict[str, Any]) -> None:
    """Guards against phases that nobody asked for."""
    schedule = TrainSchedule(TrainSettings(**settings))
    assert schedule.phase == "training"


def test_it_goes_on_from_its_state() -> None:
    """Guards against a resumed run that ranks again, or forgets its restarts."""
    first = TrainSchedule(TrainSettings())
    played(first, [0.9, 0.9, 0.91])
    played(first, [0.7, 0.6, 0.65], [0.1, -0.1, 0.2], 3)
    second = TrainSchedule(TrainSettings())
    second.load(json.loads(json.dumps(first.state())))
    assert second.state() == first.state()
    assert played(first, [0.6] * 9, [-0.1] * 9, 6) == played(second, [0.6] * 9, [-0.1] * 9, 6)


def test_estimates_by_hand() -> None:
    """Guards against a standard error of the population: mean 2, deviation 1 of three values."""
    found = Estimate.of([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.sem == pytest.approx(1 / 3**0.5)
    assert not Estimate.of([5.0]).is_above(0, 1)
