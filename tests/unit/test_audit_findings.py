"""What an audit concludes, and what it says a run will cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lasro.config import PretrainSettings, TrainSettings, load_config
from lasro.wire import Protocol, RewardInfo
from lasro_client.audit.findings import Facts, judge, verdict
from lasro_client.audit.run import request_size
from lasro_client.evaluation.reward_spread import Components, Ties
from lasro_client.run.cost import (
    Cost,
    Speed,
    affordable_rounds,
    evaluation_cost,
    fewest_calls,
    least_and_most_rounds,
    least_train_cost,
    pretrain_cost,
    train_cost,
)

DEMO = Path(__file__).parents[2] / "configs" / "demo.toml"
REWARD = RewardInfo(
    name="r", url="http://127.0.0.1:1/", protocol=Protocol.NATIVE, timeout_s=30, max_batch=32, images_per_call=32,
    concurrency=2, range=(0, 1), has_secret=False, header_names=[], repeats=1, cache=True, mapping=None, version=1,
)  # fmt: skip
GOOD = Facts(
    reward=REWARD,
    measurements=192,
    failed={},
    error=None,
    out_of_range=0,
    within=Components(0.0, 0.09, 0.0),
    ties=Ties(pairs=1056, tied=100, groups=8, constant=0),
    equal=Ties(pairs=1056, tied=0, groups=8, constant=0),
    margin=0.02,
    within_num_steps=False,
    between_stages=0.2,
    slowest_s=0.2,
    round_s=0.5,
    round_timeout_s=300,
    rounds=100,
    affordable_rounds=None,
)
ALL_TIED = Ties(pairs=1056, tied=1056, groups=8, constant=8)


def judged(**changes: object) -> list[tuple[str, str]]:
    return [(finding.name, finding.level) for finding in judge(replace(GOOD, **changes))]  # pyright: ignore[reportArgumentType]


def test_a_good_reward_is_left_alone() -> None:
    """Findings about nothing would be read past when there is something."""
    assert judge(GOOD) == []
    assert verdict([]) == "yes"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"failed": {"rejected": 2}}, [("failures", "note")]),
        ({"failed": {"rejected": 10, "timeout": 10}}, [("failures", "doubtful")]),
        ({"failed": {"timeout": 96}}, [("failures", "no")]),
        ({"failed": {"bad_reply": 3}, "out_of_range": 3}, [("failures", "note"), ("out_of_range", "note")]),
        ({"ties": Ties(1056, 300, 8, 1)}, [("constant", "note")]),
        ({"ties": Ties(1056, 600, 8, 4)}, [("constant", "doubtful"), ("ties", "note")]),
        ({"ties": Ties(1056, 960, 8, 0)}, [("ties", "doubtful")]),
        ({"ties": ALL_TIED, "equal": ALL_TIED}, [("constant", "no")]),
        ({"ties": ALL_TIED, "within": Components(0.0, 0.0, 1e-9)}, [("constant", "no")]),
        ({"within": Components(0.0, 0.0, 0.09)}, [("noise", "no")]),
        ({"within": Components(0.0, 0.04, 0.06)}, [("noise", "doubtful")]),
        ({"within": Components(0.0, 0.06, 0.04)}, [("noise", "note")]),
        ({"between_stages": 0.6}, [("stages", "note")]),
        ({"between_stages": 0.95}, [("stages", "doubtful")]),
        ({"between_stages": 0.95, "within_num_steps": True}, []),
        ({"round_s": 400.0}, [("slow_round", "doubtful")]),
        ({"slowest_s": 16.0}, [("near_timeout", "note")]),
        ({"affordable_rounds": 40}, [("budget", "note")]),
        ({"affordable_rounds": 100}, []),
    ],
)
def test_each_finding_at_its_level(changes: dict[str, object], expected: list[tuple[str, str]]) -> None:
    """A threshold on the wrong side, or one cause told twice."""
    assert judged(**changes) == expected


def test_the_verdict_is_the_gravest() -> None:
    """One good figure must not outweigh what rules a reward out; a note must not count."""
    findings = judge(replace(GOOD, failed={"timeout": 96}, between_stages=0.95, slowest_s=20.0))
    assert [finding.level for finding in findings] == ["no", "doubtful", "note"]
    assert [verdict(findings), verdict(findings[1:]), verdict(findings[2:])] == ["no", "doubtful", "yes"]


def test_findings_say_numbers_and_what_to_do() -> None:
    """Advice without the figure that it rests on, or for a setting that would not help."""
    (noise,) = judge(replace(GOOD, within=Components(0.0, 0.04, 0.04)))
    assert "Repeats of one image differ by 0.2, images of one prompt by 0.2" in noise.says
    assert "at best 75%" in noise.says
    assert "--repeats 4" in noise.do
    (twice,) = judge(replace(GOOD, within=Components(0.0, 0.04, 0.04), reward=REWARD.model_copy(update={"repeats": 2})))
    assert "--repeats 8" in twice.do, "what was measured is a mean of two already"
    (hopeless,) = judge(replace(GOOD, within=Components(0.0, 0.01, 0.09)))
    assert "repeats" in hopeless.do
    assert "would not be enough" in hopeless.do
    (coarse,) = judge(replace(GOOD, ties=ALL_TIED, equal=ALL_TIED, within=Components(0.0, 0.0, 0.0)))
    assert "No two images of all 8 prompts differ" in coarse.says
    assert "grades" in coarse.do
    (margin,) = judge(replace(GOOD, ties=ALL_TIED, within=Components(0.0, 1e-4, 0.0)))
    assert "lower surrogate.tie_margin: images of a prompt differ by 0.01" in margin.do
    (failed,) = judge(replace(GOOD, failed={"timeout": 5, "rejected": 4}, error="no reply within 30 s"))
    assert "9 of 192 measurements failed (timeout 5, rejected 4); the first: no reply within 30 s." in failed.says
    assert "timeout_s" in failed.do


def test_the_cost_of_the_demo_is_what_it_was() -> None:
    """An audit foretells another number than a run spends: 45 of the demo's 60 rounds made 1,432 calls."""
    config = load_config(DEMO)
    assert train_cost(config.train, Speed(32, 2, 1)).calls == 1912
    assert train_cost(config.train.model_copy(update={"rounds": 45}), Speed(32, 2, 1)).calls == 1432
    assert evaluation_cost(config.evaluation.prompts, 32, Speed(32, 2, 1)).calls == 512


def test_costs_by_hand() -> None:
    """Repeats, waves or the base's samples forgotten.

    3 rounds of 2 prompts x 3 seeds: 12 images, 12 once more after the first update: 12 + 24 + 24 = 60, thrice each.
    12 images in calls of 5 are 3, three times 9, by four at once 3 waves of 2 s; 24 are 5, 15, 4 waves.
    """
    speed = Speed(images_per_call=5, concurrency=4, repeats=3, wave_s=2.0)
    train = TrainSettings(rounds=3, prompts_per_round=2, seeds_per_prompt=3)
    assert train_cost(train, speed) == Cost(180, 2 * (3 + 4 + 4))
    short = train.model_copy(update={"warmup_rounds": 9})
    assert train_cost(train.model_copy(update={"reference_seeds": 1}), speed).calls < 180, "the base draws fewer"
    assert train_cost(short, speed) == Cost(108, 2 * 9), "no round of a warm-up draws the base twice"
    with_probe = PretrainSettings(rounds=5, prompts_per_round=2, seeds_per_prompt=3, probe_after=1, probe_rounds=2)
    assert pretrain_cost(with_probe, speed) == Cost(3 * (3 * 12 + 2 * 24), 2 * (3 * 3 + 2 * 4))
    assert pretrain_cost(with_probe.model_copy(update={"probe_rounds": 0}), speed).calls == 3 * 5 * 12
    # 7 prompts in requests of 4 and 3: one call each, three times, one wave; before and after, in two stages.
    assert evaluation_cost(7, 4, speed) == Cost(4 * 7 * 3, 4 * 2 * 2.0)


def test_a_run_from_nothing_has_a_least_and_a_most() -> None:
    """Bug: it was said to cost 300 rounds, of which most take 18 to 60; or perturbed samples were forgotten.

    2 prompts x 3 seeds: 12 images, 24 with those of a reference. The first round of training has the base's alone.
    Ranking has 4 prompts, and of one seed of each perturbed samples: 32.
    """
    speed, train = Speed(32, 2, 1), TrainSettings(prompts_per_round=2, seeds_per_prompt=3)
    assert least_and_most_rounds(train) == ((3, 16), (180, 120))
    assert least_train_cost(train, speed).calls == 3 * 32 + 12 + 15 * 24
    assert train_cost(train, speed).calls == 12 * 32 + 168 * 24 + 12 + 119 * 24
    plain = train.model_copy(update={"perturbation": 0.0})
    assert least_train_cost(plain, speed).calls == 3 * 24 + 12 + 15 * 24
    given = train.model_copy(update={"rounds": 50})
    assert least_and_most_rounds(given) == ((3, 47), (16, 34)), "these are done, however soon it ranks"
    assert least_train_cost(given, speed).calls == 3 * 32 + 12 + 46 * 24
    assert train_cost(given, speed).calls == 12 * 32 + 4 * 24 + 12 + 33 * 24
    warm = train.model_copy(update={"warmup_rounds": 1})
    assert least_and_most_rounds(warm) == ((0, 150), (0, 150))
    assert fewest_calls(train, 2) == 2 * (32 + 12 + 3 * 24)
    assert fewest_calls(train.model_copy(update={"rounds": 2}), 1) == 12 + 24, "no more than are asked for"


def test_waves_that_were_not_full_are_not_taken_for_full_ones() -> None:
    """8 images in a call that holds 32 took 2 s: one of 32 was foretold at 2 s too, where each image takes its time."""
    small = Speed(images_per_call=32, concurrency=2, repeats=1, wave_s=2.0, image_s=0.25)
    assert [small.seconds(images) for images in (4, 8, 32, 128)] == [2, 2, 8, 32]


def test_affordable_rounds_by_hand() -> None:
    """Rounds cost 12, then 24 each, of a budget that pays two rewards for every image."""
    train = TrainSettings(rounds=3, prompts_per_round=2, seeds_per_prompt=3)
    budgets = {0: 0, 23: 0, 24: 1, 71: 1, 72: 2, 120: 3, 10_000: 3}
    assert {budget: affordable_rounds(train, 2, budget) for budget in budgets} == budgets


@pytest.mark.parametrize(
    ("changes", "together", "expected"),
    [
        ({}, 36, 36),
        ({}, 192, 64),
        ({"images_per_call": 1, "timeout_s": 120.0, "concurrency": 4}, 36, 20),
        ({"images_per_call": 1, "timeout_s": 600.0, "concurrency": 1, "repeats": 3}, 36, 1),
    ],
)
def test_requests_end_in_time(changes: dict[str, object], together: int, expected: int) -> None:
    """A slow judge's images ran into the request's limit, and were counted as its timeouts."""
    assert request_size(REWARD.model_copy(update=changes), together) == expected
