"""Totals of several rewards, in float64: by hand, and what must hold for any."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasro.errors import ConfigError, WireError
from lasro.functional.reward_totals import (
    Combine,
    RewardObjective,
    Scale,
    Values,
    group_totals,
    ranking_values,
    scale_of,
    tie_margin,
    totals,
)

NAN = math.nan
NAMES: tuple[str, ...] = ("a", "b", "guard")
numbers = st.floats(-100, 100, allow_subnormal=False)
numbers_or_failed = numbers | st.just(NAN)
Rewards = dict[str, Values]


def rewards(**columns: list[float]) -> Rewards:
    return {name: np.array(values) for name, values in columns.items()}


@st.composite
def samples(draw: st.DrawFn, elements: st.SearchStrategy[float] = numbers_or_failed) -> Rewards:
    count = draw(st.integers(1, 6))
    return {name: np.array(draw(st.lists(elements, min_size=count, max_size=count))) for name in NAMES}


@st.composite
def objectives(draw: st.DrawFn) -> RewardObjective:
    """Any that may meet negative rewards, so no product."""
    return RewardObjective(
        weights=draw(st.fixed_dictionaries(dict.fromkeys(NAMES, st.just(0.0) | st.floats(-3, 3)))),
        combine=draw(st.sampled_from(["sum", "minimum"])),
        floors=draw(st.dictionaries(st.sampled_from(NAMES), numbers)),
        normalised=draw(st.sets(st.sampled_from(NAMES))),
    )


def scales(objective: RewardObjective, given: Rewards) -> dict[str, Scale]:
    return {name: scale_of([given[name]]) for name in objective.normalised}


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("sum", [2 * 0.5 + 3 * 0.25, 2 * 0.1 + 3 * 0.9]),
        ("product", [0.5**2 * 0.25**3, 0.1**2 * 0.9**3]),
        ("minimum", [3 * 0.25, 2 * 0.1]),
    ],
)
def test_totals_by_hand(combine: Combine, expected: list[float]) -> None:
    """Guards against a weight that does not enter as documented, and against weight 0 entering at all."""
    given = rewards(a=[0.5, 0.1], b=[0.25, 0.9], logged=[-9.0, NAN])
    found = totals(given, RewardObjective({"a": 2.0, "b": 3.0, "logged": 0.0}, combine))
    assert found.total_N == pytest.approx(expected, rel=1e-15)
    assert not found.vetoed_N.any()


def test_scale_by_hand() -> None:
    """Guards against the spread between prompts counting: 1, 3 and 10, 10, 13 vary by 2 and 6 over 1 + 2 of freedom."""
    found = scale_of([np.array([1.0, NAN, 3.0]), np.array([10.0, 10.0, 13.0]), np.array([50.0]), np.array([NAN])])
    assert found.mean == pytest.approx((1 + 3 + 10 + 10 + 13 + 50) / 6)
    assert found.deviation == pytest.approx(math.sqrt((2 + 6) / 3))


def test_tie_margin_by_hand() -> None:
    """Guards against the spread between prompts entering: 1, 3 and 10, 10, 13 vary by sqrt(8 / 3) within theirs."""
    groups = [np.array([1.0, NAN, 3.0]), np.array([10.0, 10.0, 13.0]), np.array([50.0])]
    assert tie_margin(0.1, groups) == pytest.approx(0.1 * math.sqrt(8 / 3), rel=1e-15)
    assert tie_margin(0.0, groups) == 0


def test_what_does_not_vary_ties_by_rounding() -> None:
    """Guards against a margin of 0 for a constant reward, whose rounding would then be ranked."""
    assert tie_margin(0.1, [np.array([0.3, 0.1 + 0.2]), np.array([-5.0, -5.0])]) == pytest.approx(5e-9)
    assert tie_margin(0.1, []) == tie_margin(0.1, [np.array([NAN])]) == 0


def test_totals_of_groups_are_those_of_each() -> None:
    """Guards against totals that move to the group before, and vetoed samples that widen the spread."""
    given = [rewards(a=[1.0, 2.0], g=[1.0, 0.0]), rewards(a=[3.0, NAN, 5.0], g=[1.0, 1.0, 1.0])]
    found = group_totals(given, RewardObjective({"a": 2.0, "g": 0.0}, floors={"g": 0.5}))
    assert [group.tolist() for group in found] == [pytest.approx(x, nan_ok=True) for x in ([2, NAN], [6, NAN, 10])]
    assert group_totals([], RewardObjective({"a": 2.0})) == []


@pytest.mark.parametrize("groups", [[], [[NAN]], [[0.0, 0.0]], [[7.0], [9.0]], [[0.1] * 3, [0.7] * 7], [[0.3, NAN]]])
def test_what_does_not_vary_within_a_group_has_a_standard_deviation_of_0(groups: list[list[float]]) -> None:
    """Guards against a division by zero, or by the rounding of a mean, which would drown every other reward."""
    assert scale_of([np.array(group) for group in groups]).deviation == 0


@pytest.mark.parametrize("combine", ["sum", "minimum"])
def test_normalised_totals_by_hand(combine: Combine) -> None:
    """Guards against normalising after weighting, and against a reward that never varied pulling a minimum to 0."""
    given = rewards(a=[12.0, 8.0], b=[0.5, 0.75], same=[1.0, 1.0])
    weights = dict.fromkeys(("a", "b", "same"), 1.0)
    objective = RewardObjective(weights | {"b": 3.0}, combine, normalised=("a", "same"))
    found = totals(given, objective, {"a": Scale(10.0, 0.5), "same": Scale(1.0, 0.0)})
    a, b = [4.0, -4.0], [1.5, 2.25]
    assert found.total_N.tolist() == [a[0] + b[0], a[1] + b[1]] if combine == "sum" else [b[0], a[1]]


def test_guards_by_hand() -> None:
    """Guards against a floor that vetoes what just reaches it, and violations in the wrong unit or of what passes."""
    given = rewards(a=[1.0, 2.0, 3.0, 4.0], kb=[10.0, 9.0, 11.0, 6.0], safe=[0.7, 0.7, 0.4, 0.6])
    objective = RewardObjective({"a": 1.0, "kb": 0.0, "safe": 0.0}, floors={"kb": 10.0, "safe": 0.7})
    found = totals(given, objective)
    assert found.total_N.tolist() == [1, 2, 3, 4]
    assert found.vetoed_N.tolist() == [False, True, True, True]
    assert found.floor_violation_N == pytest.approx([0, 1, 0.3, 4.1])
    assert found.valid_total_N[0] == 1
    assert np.isnan(found.valid_total_N[1:]).all()
    normalised = RewardObjective(objective.weights, "sum", objective.floors, ["kb"])
    assert totals(given, normalised, {"kb": Scale(50.0, 2.0)}).floor_violation_N == pytest.approx([0, 0.5, 0.3, 2.1])


def test_ranking_by_hand() -> None:
    """Guards against a vetoed sample ranked by its total: 9 is the highest one, and the farthest below the floor."""
    given = rewards(a=[1.0, 2.0, 9.0, 8.0, NAN], guard=[0.5, 0.6, 0.1, 0.3, 0.2])
    found = totals(given, RewardObjective({"a": 1.0, "guard": 0.0}, floors={"guard": 0.5}))
    values = ranking_values(found, margin=0.1)
    assert values[:2].tolist() == [1, 2]
    assert values[2:4] == pytest.approx([1 - 1.2 - 0.4, 1 - 1.2 - 0.2])
    assert np.isnan(values[4])
    only_vetoed = ranking_values(totals({"a": given["a"][2:4], "guard": given["guard"][2:4]}, ALONE), margin=0.1)
    assert only_vetoed[1] - only_vetoed[0] == pytest.approx(0.2)


ALONE = RewardObjective({"a": 0.0, "guard": 0.0}, floors={"guard": 0.5})


def test_a_guard_alone_ranks() -> None:
    """Guards against an objective of nothing but guards ending in an error, or in totals of nothing."""
    found = totals(rewards(a=[NAN, 5.0, 5.0], guard=[0.7, 0.2, NAN]), ALONE)
    assert found.total_N[:2].tolist() == [0, 0]
    assert found.vetoed_N.tolist() == [False, True, False]
    assert np.isnan(found.total_N[2])


def test_a_guard_that_has_not_varied_still_vetoes() -> None:
    """Guards against a veto lost in normalising: a constant guard below its floor must not pass."""
    objective = RewardObjective({"a": 1.0, "guard": 0.0}, "sum", {"guard": 0.5}, ["guard"])
    found = totals(rewards(a=[1.0, 2.0], guard=[0.4, 0.6]), objective, {"guard": Scale(0.4, 0.0)})
    assert found.vetoed_N.tolist() == [True, False]


def test_a_failed_guard_is_a_failed_total() -> None:
    """Guards against a guard that could not be asked counting as passed, or as a veto of what may be fine."""
    given = rewards(a=[1.0], guard=[NAN], other=[0.0])
    weights = {"a": 1.0, "guard": 0.0, "other": 0.0}
    for floors in ({"guard": 0.5}, {"guard": 0.5, "other": 0.5}):
        found = totals(given, RewardObjective(weights, floors=floors))
        assert np.isnan(found.total_N).all()
        assert not found.vetoed_N.any()
        assert found.floor_violation_N.tolist() == [0]


@given(samples(), objectives())
def test_a_total_is_missing_exactly_where_a_reward_that_counts_is(given: Rewards, objective: RewardObjective) -> None:
    """Guards against a failed reward counted as a number, and against one that is only logged costing a sample."""
    counts = [name for name in NAMES if objective.weights[name] or name in objective.floors]
    failed = [any(np.isnan(given[name][i]) for name in counts) for i in range(len(given["a"]))]
    found = totals(given, objective, scales(objective, given))
    assert np.isnan(found.total_N).tolist() == failed
    assert np.isnan(ranking_values(found, 0.02)).tolist() == failed


@given(samples(), objectives(), st.floats(0, 1e3))
def test_a_vetoed_sample_never_ranks_above(given: Rewards, objective: RewardObjective, margin: float) -> None:
    """Guards against a large total buying back what a guard refused."""
    found = totals(given, objective, scales(objective, given))
    values = ranking_values(found, margin)
    passed = values[~found.vetoed_N & ~np.isnan(values)]
    vetoed, violation = values[found.vetoed_N], found.floor_violation_N[found.vetoed_N]
    below = {i: any(given[n][i] < floor for n, floor in objective.floors.items()) for i in range(len(values))}
    assert found.vetoed_N.tolist() == [below[i] and not np.isnan(values[i]) for i in below]
    assert (passed[:, None] - vetoed[None, :] > margin).all()
    assert passed.tolist() == found.total_N[~found.vetoed_N & ~np.isnan(values)].tolist()
    differences = (values_N[:, None] - values_N[None, :] for values_N in (vetoed, -violation))
    np.testing.assert_allclose(next(differences), next(differences), atol=1e-9)


@given(st.lists(samples(numbers), min_size=1, max_size=4), st.sampled_from(NAMES), numbers, st.floats(0.1, 50))
def test_zero_and_unit_of_a_normalised_reward_do_not_matter(
    groups: list[Rewards], name: str, shift: float, unit: float
) -> None:
    """Guards against rewards of large numbers or units outweighing the others: what normalising is for."""
    objective = RewardObjective(dict.fromkeys(NAMES, 1.0), normalised=NAMES)
    changed = [group | {name: unit * group[name] + shift} for group in groups]
    if any(0 < scale_of([group[n] for group in groups]).deviation < 1e-3 for n in NAMES):
        return  # within rounding of not varying
    found = [
        totals(of[0], objective, {n: scale_of([group[n] for group in of]) for n in NAMES}).total_N
        for of in (groups, changed)
    ]
    np.testing.assert_allclose(found[0] - found[0][0], found[1] - found[1][0], atol=1e-6)


@given(st.lists(st.lists(numbers, min_size=1, max_size=5), min_size=1, max_size=6), st.randoms())
def test_a_scale_does_not_depend_on_the_order_of_groups(groups: list[list[float]], random) -> None:
    """Guards against statistics in which the newest group weighs more than the others."""
    one = scale_of([np.array(group) for group in groups])
    random.shuffle(groups)
    other = scale_of([np.array(group) for group in groups])
    assert (one.mean, one.deviation) == pytest.approx((other.mean, other.deviation), abs=1e-9)


def test_a_negative_reward_in_a_product_is_named() -> None:
    """Guards against two bad rewards multiplied to a good total, or a root of a negative number."""
    objective = RewardObjective({"a": 1.0, "b": 1.0, "logged": 0.0, "guard": 0.0}, "product", {"guard": -5.0})
    given = rewards(a=[0.5, NAN], b=[-0.25, 1.0], logged=[-1.0, -1.0], guard=[-4.0, -6.0])
    with pytest.raises(WireError, match=r"reward b: got -0\.25, expected at least 0 in a product"):
        totals(given, objective)
    found = totals(given | rewards(b=[0.0, 1.0]), objective)
    assert found.total_N[0] == 0
    assert np.isnan(found.total_N[1])


@pytest.mark.parametrize("combine", get_args(Combine))
def test_huge_rewards_fail_without_a_warning(combine: Combine) -> None:
    """Guards against an infinite total, which is above everything, and against a crash of the trainer's thread."""
    given = rewards(a=[1e308, 1e308, 1.0], b=[1e308, 2.0, 1.0])
    found = totals(given, RewardObjective({"a": 10.0, "b": 10.0}, combine))
    assert np.isnan(found.total_N).tolist() == [True, combine != "minimum", False]
    assert np.isfinite(scale_of([given["a"], -given["a"]]).deviation)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"floors": {"c": 0.5}}, r"floors: got \['c'\], expected only rewards of the objective \['a', 'b'\]"),
        ({"normalised": ["c"]}, r"normalised: got \['c'\]"),
        ({"combine": "product", "weights": {"a": -1.0}}, "weight of a: got -1, expected at least 0 in a product"),
        ({"combine": "product", "normalised": ["b"]}, "b: a normalised reward falls on both sides of 0"),
    ],
)
def test_objectives_without_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    """Guards against a run that finds out after its first round what its settings already say."""
    complete: dict[str, Any] = {"weights": {"a": 1.0, "b": 1.0}} | settings
    with pytest.raises(ConfigError, match=message):
        RewardObjective(**complete)
