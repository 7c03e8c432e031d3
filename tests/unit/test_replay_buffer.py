"""The replay buffer: what it keeps and draws may depend on what arrived, never on when."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lasro import wire
from lasro.errors import NonFiniteError, WireError
from lasro.functional.reward_totals import RewardObjective, scale_of
from lasro.reward_function import RejectedItem
from lasro.training.prompts import Prompt
from lasro.training.replay_buffer import HELD_OUT_GROUPS, ReplayBuffer, ReplayGroup, group_from_sample, is_held_out
from lasro.training.sampling import Group

SHAPE = (4, 2, 2)


def group(number: int, per_round: int = 3) -> ReplayGroup:
    return ReplayGroup(
        group_id=f"g{number}",
        round=number // per_round,
        index=number % per_round,
        prompt="a red star",
        num_steps_N=np.array([1, 2]),
        rewards={"a": np.array([float(number), number / 2])},
        latents_NCHW=np.zeros((2, *SHAPE), np.float16),
    )


def sample(rewards: dict[str, list[float | None]], latents: np.ndarray | None = None) -> wire.ScoredGroup:
    body = np.zeros((2, *SHAPE), np.float32) if latents is None else latents
    return wire.ScoredGroup(
        group_id="g",
        round=0,
        index=0,
        prompt="a red star",
        policy_version=0,
        stages=[1, 2],
        rewards=rewards,
        versions={},
        latents=wire.pack_tensors({"latents": body}),
    )


def batches(replay: ReplayBuffer, size: int, steps: int = 5) -> list[list[str]]:
    return [[g.group_id for g in replay.draw(size, np.random.default_rng([7, step]))] for step in range(steps)]


@given(st.permutations(range(25)), st.permutations(range(25)), st.integers(0, 25), st.integers(1, 9))
def test_batches_do_not_depend_on_arrival(one, other, split, size):
    """Guards against a replay ordered by arrival, which would make no run reproducible."""
    drawn = []
    for order, cut in ((one, split), (other, 25 - split)):
        replay = ReplayBuffer(buffer_groups=10, recent_groups=4, held_out_share=0.2)
        for part in (order[:cut], order[cut:]):
            for number in part:
                replay.add(group(number))
            replay.activate([f"g{number}" for number in part])
        drawn.append((batches(replay, size), [g.group_id for g in replay.held_out()], replay.scales(["a"])))
    assert drawn[0] == drawn[1]


@given(st.lists(st.integers(0, 12), max_size=40))
def test_a_group_enters_once(numbers):
    """Guards against a redelivered sample being trained on twice."""
    replay = ReplayBuffer(buffer_groups=100, recent_groups=4, held_out_share=0)
    news = [replay.add(group(number)) for number in numbers]
    replay.activate([])
    news += [replay.add(group(number)) for number in numbers]
    assert sum(news) == replay.training_groups == len(set(numbers))


def test_groups_wait_until_they_are_named():
    """Guards against batches that change because the next round's samples came early."""
    replay = ReplayBuffer(buffer_groups=10, recent_groups=4, held_out_share=0)
    for number in range(4):
        replay.add(group(number))
    assert replay.activate(["g1", "g0", "g9", "g1"]) == ["g1", "g0"]
    assert replay.training_groups == 2
    assert replay.waiting_groups == 2
    assert replay.missing(["g0", "g2", "g9"]) == ["g9"]
    assert replay.activate(["g0", "g1"]) == []
    assert replay.activate([]) == ["g2", "g3"]
    assert replay.training_groups == 4


def test_a_group_that_left_the_buffer_is_not_taken_again():
    """Guards against a restart that trains a second time on what the stream delivers again."""
    replay = ReplayBuffer(buffer_groups=10, recent_groups=4, held_out_share=0)
    replay.mark_entered(["g0"])
    assert [replay.add(group(number)) for number in (0, 1)] == [False, True]
    assert replay.missing(["g0"]) == []


def test_half_of_a_batch_is_recent():
    """Guards against a surrogate that no longer follows the moving generator."""
    replay = ReplayBuffer(buffer_groups=300, recent_groups=6, held_out_share=0)
    for number in range(100):
        replay.add(group(number))
    replay.activate([])
    for names in batches(replay, size=6, steps=50):
        numbers = [int(name[1:]) for name in names]
        assert numbers == sorted(set(numbers))
        assert sum(number >= 94 for number in numbers) >= 3
    spread = {name for names in batches(replay, size=6, steps=200) for name in names}
    assert len(spread) > 90


def test_held_out_groups_are_never_drawn_and_are_bounded():
    """Guards against pair accuracy that flatters because it was measured on what was trained on."""
    replay = ReplayBuffer(buffer_groups=300, recent_groups=30, held_out_share=0.3)
    for number in range(200):
        replay.add(group(number))
    replay.activate([])
    held_out = {g.group_id for g in replay.held_out()}
    assert len(held_out) == HELD_OUT_GROUPS
    drawn = {name for names in batches(replay, size=20, steps=50) for name in names}
    held = {f"g{number}" for number in range(200) if is_held_out(number // 3, number % 3, 0.3)}
    assert not drawn & held
    assert held_out < held
    assert 40 < len(held) < 80
    assert not any(is_held_out(number, 0, 0.0) for number in range(200))


def test_twins_fall_on_the_same_side():
    """Guards against a round sampled again, under ids of its own, being trained on and held out at once."""
    replay = ReplayBuffer(buffer_groups=300, recent_groups=30, held_out_share=0.5)
    for number in range(40):
        for name in ("first", "again"):
            replay.add(dataclasses.replace(group(number), group_id=f"{name}-{number}"))
    replay.activate([])
    numbers = [g.group_id.partition("-")[2] for g in replay.held_out()]
    assert all(numbers.count(number) == 2 for number in numbers)


def test_scales_are_those_of_the_groups_in_training():
    """Guards against normalising by held-out, waiting or forgotten groups, which no resume could repeat."""
    replay = ReplayBuffer(buffer_groups=5, recent_groups=4, held_out_share=0.3)
    for number in range(20):
        replay.add(group(number))
    replay.activate([f"g{number}" for number in range(18)])
    kept = [number for number in range(18) if not is_held_out(number // 3, number % 3, 0.3)][-5:]
    assert replay.scales(["a"]) == {"a": scale_of([group(number).rewards["a"] for number in kept])}
    assert replay.scales([]) == {}


def test_every_reward_is_kept_as_it_came():
    """Guards against a failed reward being counted as a number, and a floor missed by the rounding of float32."""
    rewards: dict[str, list[float | None]] = {"a": [0.7, None], "logged": [None, 0.25], "foreign": [1.0, 1.0]}
    made = group_from_sample(sample(rewards), RewardObjective({"a": 2.0, "logged": 0.0}), SHAPE)
    assert made.rewards.keys() == {"a", "logged"}
    np.testing.assert_array_equal(made.rewards["a"], [0.7, np.nan])
    np.testing.assert_array_equal(made.rewards["logged"], [np.nan, 0.25])
    assert made.latents_NCHW.dtype == np.float16


def test_what_made_each_sample_is_kept():
    """Bug: the trainer cannot tell which pairs share a noise; a group that does not say so is taken to."""
    objective, scored = RewardObjective({"a": 1.0}), sample({"a": [0.5, 0.7]})
    said = scored.model_copy(update={"seeds": [3, 3], "draws": [0, 1], "reference": [False, True]})
    origins = group_from_sample(said, objective, SHAPE).origins
    assert origins is not None
    assert [values.tolist() for values in origins] == [[3, 3], [0, 1], [False, True]]
    assert group_from_sample(scored, objective, SHAPE).origins is None
    assert ReplayGroup.from_samples(samples_of(2), {"a": [0.5, 0.7]}, 0, 0).origins is None
    sampled = samples_of(2)._replace(seeds=[3, 3], draws=[0, 1])
    assert ReplayGroup.from_samples(sampled, {"a": [0.5, 0.7]}, 0, 0).origins is not None


def test_a_negative_reward_of_a_product_is_refused():
    """Guards against a group that crashes the training thread each time it is drawn."""
    with pytest.raises(WireError, match=r"reward a: got -0\.5, expected at least 0 in a product"):
        group_from_sample(sample({"a": [1.0, -0.5]}), RewardObjective({"a": 1.0}, "product"), SHAPE)


@pytest.mark.parametrize(
    ("rewards", "latents", "expected"),
    [
        ({"b": [1.0, 2.0]}, None, "expected also a"),
        ({"a": [1.0]}, None, "got 1, expected one per sample"),
        ({"a": [1.0, 2.0]}, np.zeros((3, *SHAPE), np.float32), r"expected one tensor `latents` \[2, 4, 2, 2\]"),
        ({"a": [1.0, 2.0]}, np.full((2, *SHAPE), np.nan, np.float32), "NaN"),
        ({"a": [1.0, 2.0]}, np.full((2, *SHAPE), 1e6, np.float32), "float16"),
    ],
)
def test_what_must_not_be_trained_on_is_refused(rewards, latents, expected):
    """Guards against wrong counts, shapes and NaN entering the optimiser."""
    with pytest.raises((WireError, NonFiniteError), match=expected):
        group_from_sample(sample(rewards, latents), RewardObjective({"a": 1.0}), SHAPE)


def samples_of(count: int, largest: float = 1.0) -> Group:
    latents_BCHW = torch.linspace(0, largest, count * 16).reshape(count, 4, 2, 2)
    return Group(Prompt("a red star"), latents_BCHW, [1, 2], [False, False], [b""] * count)


def test_a_group_made_from_samples_has_a_reward_per_sample() -> None:
    """Guards against rewards put to other samples than they are of, and a rejected image counted as a number."""
    rewards = {"a": [0.25, RejectedItem("no face")], "b": [1, float("nan")]}
    made = ReplayGroup.from_samples(samples_of(2), rewards, round=3, index=1)
    assert (made.order, made.prompt, made.num_steps_N.tolist()) == ((3, 1, "3-1"), "a red star", [1, 2])
    np.testing.assert_array_equal(made.rewards["a"], [0.25, np.nan])
    np.testing.assert_array_equal(made.rewards["b"], [1.0, np.nan])
    assert made.latents_NCHW.dtype == np.float16
    assert made.latents_NCHW.shape == (2, *SHAPE)


def test_samples_that_do_not_fit_are_refused() -> None:
    """Guards against rewards of another group, and infinity in the latents, reaching a training step."""
    with pytest.raises(WireError, match=r"of a: got 1, expected one per sample \(2\)"):
        ReplayGroup.from_samples(samples_of(2), {"a": [0.5]}, 0, 0)
    with pytest.raises(NonFiniteError, match="float16"):
        ReplayGroup.from_samples(samples_of(2, largest=1e6), {"a": [0.5, 0.5]}, 0, 0)


def test_settling_draws_old_groups_as_often_as_new_ones() -> None:
    """Bug: half of what a surrogate settles on is the newest tenth, and it forgets what it learned before."""
    replay = ReplayBuffer(buffer_groups=100, recent_groups=4, held_out_share=0)
    for number in range(40):
        replay.add(group(number))
    replay.activate([])
    rng = np.random.default_rng(0)
    counts = {from_all: [0] * 40 for from_all in (False, True)}
    for from_all, times in counts.items():
        for _ in range(400):
            drawn = replay.draw(4, rng, from_all)
            assert len({each.group_id for each in drawn}) == 4
            assert [each.order for each in drawn] == sorted(each.order for each in drawn)
            for each in drawn:
                times[int(each.group_id[1:])] += 1
    assert sum(counts[False][-4:]) > 0.5 * 1600
    assert sum(counts[True][-4:]) == pytest.approx(0.1 * 1600, rel=0.3)
    assert min(counts[True]) > 10
