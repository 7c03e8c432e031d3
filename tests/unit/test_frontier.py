"""The frontier benchmark: its limit, its shares of it, and what it reads from a run; without training."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.frontier.envelope import Point, limit_at, share_of_limit, upper_envelope
from benchmarks.frontier.held_out import PROMPT_SPLITS, Values, within_prompt_deviation
from benchmarks.frontier.limit import MODULE, Descent, limit_table, on_the_limit
from benchmarks.frontier.rewards import REWARDS
from benchmarks.frontier.run import calls_by_phase, how_it_ended, write_run
from benchmarks.frontier.table import find_runs, markdown, pictures
from lasro.config import load_config
from lasro.reward_function import load_reward

BASE, LOW, HIGH = Point(0, 0), Point(0.5, 3.0, 0.2), Point(1.5, 4.0, 0.4)
MEASURED = [HIGH, LOW, Point(1.0, 3.2), Point(0.25, 1.0), Point(2.0, 3.9)]


def test_the_envelope_is_concave_and_ends_at_the_greatest_gain() -> None:
    """Guards against a limit that runs through points of which a mixture of two others gains more."""
    assert upper_envelope(MEASURED) == [BASE, LOW, HIGH]
    assert upper_envelope([Point(0.5, -1.0)]) == [BASE]
    assert upper_envelope([]) == [BASE]


@pytest.mark.parametrize(
    ("drift", "gain", "sem"), [(0.0, 0.0, 0.0), (0.25, 1.5, 0.1), (0.5, 3.0, 0.2), (1.0, 3.5, 0.3), (1.8, 4.0, 0.4)]
)
def test_the_limit_is_interpolated_between_the_points(drift: float, gain: float, sem: float) -> None:
    """Guards against a step or an extrapolation in place of the line between two adapters."""
    limit = limit_at(upper_envelope(MEASURED), drift, reached=2.0)
    assert limit is not None
    assert limit == pytest.approx((drift, gain, sem))


def test_nothing_is_said_of_a_drift_that_no_path_reached() -> None:
    """Guards against a share of a limit that was never measured."""
    assert limit_at(upper_envelope(MEASURED), 2.01, reached=2.0) is None
    assert share_of_limit(1.0, 2.01, MEASURED) is None
    assert share_of_limit(1.0, 0.5, [Point(0.5, -1.0)]) is None
    assert share_of_limit(1.75, 1.0, MEASURED) == pytest.approx(0.5)


points = st.builds(Point, st.floats(0, 2), st.floats(-1, 1))


@given(st.lists(points, max_size=12))
def test_no_point_is_above_the_limit(measured: list[Point]) -> None:
    """Guards against a run that gains more than a limit it is part of."""
    envelope = upper_envelope(measured)
    slopes = [(b.gain - a.gain) / (b.drift - a.drift) for a, b in pairwise(envelope)]
    assert all(a >= b - 1e-9 for a, b in pairwise(slopes))
    for point in measured:
        limit = limit_at(envelope, point.drift, reached=2.0)
        assert limit is not None
        assert limit.gain >= point.gain - 1e-9


def test_deviation_is_within_prompts_alone() -> None:
    """Guards against a scale that prompts of different rewards make, which no noise changes."""
    first: dict[int, Values] = {1: [0.0, 10.0], 2: [5.0, None]}
    second: dict[int, Values] = {1: [2.0, 10.0], 2: [5.0, 7.0]}
    assert within_prompt_deviation(first, second) == pytest.approx(math.sqrt(2 / 3))


def test_the_regulariser_falls_from_first_to_last() -> None:
    """Guards against a path that never drifts, or jumps at once."""
    weights = [Descent(first_weight=16, last_weight=1, updates=5).weight(update) for update in range(5)]
    assert weights == pytest.approx([16, 8, 4, 2, 1])


def test_held_out_prompts_are_not_trained_on() -> None:
    """Guards against a gain on prompts that the model has learned by heart."""
    for split in (make() for make in PROMPT_SPLITS.values()):
        assert not {prompt.text for prompt in split.train} & {prompt.text for prompt in split.held_out}
    assert [len(PROMPT_SPLITS[name]().held_out) for name in ("emoji", "shapes")] == [20, 64]


def test_a_run_says_nothing_but_what_it_must(tmp_path: Path) -> None:
    """Guards against settings that a stranger would not have written, and a file that cannot be read."""
    for name in REWARDS:
        toml = write_run(tmp_path, name, f"{MODULE}:{name}", PROMPT_SPLITS["emoji"]())
        config = load_config(toml)
        assert config.model_dump(exclude_defaults=True).keys() == {"name", "prompts", "rewards"}
        assert load_reward(config.rewards[0].serve or "") is REWARDS[name]
        assert isinstance(config.prompts.train, Path)
        assert len(config.prompts.train.read_text().splitlines()) == 44


def line(stage: str, calls: int, version: int, **more: str) -> dict[str, Any]:
    return {"stage": stage, "reward_calls": calls, "policy_version": version, **more}


def test_calls_are_counted_by_phase() -> None:
    """Guards against calls that are cumulative in the log and added up once more."""
    lines = [line("train", 48, 0), line("train", 96, 0), line("train", 120, 1), line("train", 150, 2)]
    assert calls_by_phase(lines) == {"warm-up": 96, "train": 54}
    assert calls_by_phase([line("train", 10, 0, phase="first"), line("train", 30, 0, phase="second")]) == {
        "first": 10,
        "second": 20,
    }
    assert calls_by_phase([]) == {}


def test_how_a_run_ended_is_said_in_its_own_words(tmp_path: Path) -> None:
    """Guards against a run that failed and is listed like one that did all of its rounds."""
    assert how_it_ended(tmp_path) == "without a summary; see train.log"
    (tmp_path / "stopped.json").write_text('{"reason": "rewards failed"}')
    assert how_it_ended(tmp_path) == "rewards failed"
    (tmp_path / "summary.json").write_text('{"ended": null}')
    assert how_it_ended(tmp_path) == "all rounds done"


def limit_point(num_steps: int, seed: int, point: Point) -> dict[str, Any]:
    return {"num_steps": num_steps, "seed": seed, "drift": point.drift, "gain": point.gain, "gain_sem": point.gain_sem}


def test_runs_become_a_table_and_a_picture(tmp_path: Path) -> None:
    """Guards against seeds whose envelopes are mixed, and a run without an adapter that ends the table."""
    points = [limit_point(steps, seed, point) for steps in (1, 2) for seed in (0, 1) for point in MEASURED]
    limit = {"true_gradient": on_the_limit([{"points": points}])}
    assert len(limit["true_gradient"]) == 2 * 2 * 3  # two on the envelope, and the farthest
    assert "| 2 | +1.2000 ± 0.0000 (2) |" in limit_table(limit)
    (tmp_path / "limits").mkdir()
    (tmp_path / "limits" / "brightness-emoji.json").write_text(json.dumps(limit))
    measured = {"gain": {"mean": 1.75, "sem": 0.1, "n": 40}, "drift": {"ratio": {"mean": 1.0, "sem": 0.1}}}
    run = {"reward": "brightness", "prompts": "emoji", "settings": [], "minutes": 1.5, "ended": "all rounds done"}
    good = run | {"seed": 0, "status": 0, "calls": {"train": 1234}, "measured": {"1": measured, "2": measured}}
    for name, one in (
        ("a", good | {"share_of_limit": {"1": [0.5, 0.7], "2": []}}),
        ("b", run | {"seed": 1, "status": 1, "calls": {}, "ended": "rewards failed"}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "frontier.json").write_text(json.dumps(one))
    runs = find_runs([tmp_path])
    text = markdown(runs)
    assert "+1.75 ± 0.1 at 1.00 (n = 40) | 60% | +1.75 ± 0.1 at 1.00 (n = 40) |  | 1,234 train | 1.5" in text
    assert "status 1: rewards failed" in text
    (svg,) = pictures(runs, tmp_path, tmp_path / "limits")
    drawn = ElementTree.fromstring(svg.read_text())
    assert len([one for one in drawn.iter() if one.get("class") == "limit"]) == 4
    assert len([one for one in drawn.iter() if one.tag.endswith("circle") and one.get("class") == "run"]) == 2
