"""The distance from the base by the groups of a round, on latents whose distances are known."""

from __future__ import annotations

import pytest
import torch

from lasro.training.prompts import Prompt
from lasro.training.sampling import BasePairs, Group, base_pairs, distance_from_base, summarise_group
from lasro.wire import NumSteps


def group(prompt, own, base):
    """One- and two-step latents of these values; those of two steps are all 0."""
    values = [*own, *[0.0] * len(own), *base, *[0.0] * len(base)]
    latents = torch.tensor(values).reshape(-1, 1, 1, 1).expand(-1, 2, 3, 3)
    stages: list[NumSteps] = [
        num_steps for count in (len(own), len(base)) for num_steps in (1, 2) for _ in range(count)
    ]
    is_reference = [False] * 2 * len(own) + [True] * 2 * len(base)
    return Group(Prompt(prompt), latents, stages, is_reference, [])


def test_a_round_is_measured_in_changes_of_prompt():
    """Guards against own samples paired with another noise, and pairs of one prompt counted as pairs of two.

    "a" moved by 1 and 1, "b" by 3, mean squares 1 and 9; "a" at 0 and 2 is from "b" at 5 by 25 and 9, so 17.
    """
    groups = [group("a", [1.0, 3.0, 99.0], [0.0, 2.0]), group("b", [8.0], [5.0]), group("a", [4.0], [4.0])]
    kept = [summarise_group(each, groups[i:]) for i, each in enumerate(groups, 1)]
    assert kept[0].distances[1].squares_between_prompts == pytest.approx([17.0])
    assert kept[1].distances[1].squares_between_prompts == pytest.approx([1.0])
    pairs = base_pairs(kept, 1, BasePairs(12.0, 1))
    assert pairs == pytest.approx((30.0, 3))
    mean, sem = distance_from_base(kept, 1, pairs)
    assert mean == pytest.approx((((1 + 9 + 0) / 3) / 10) ** 0.5)
    assert sem is not None
    assert distance_from_base(kept, 2, base_pairs(kept, 2, BasePairs())) == (None, None), "the base draws one image"


def test_without_reference_samples_nothing_is_known():
    """Guards the first round, in which the generator is the base and has no reference samples."""
    kept = [summarise_group(group(name, [1.0], []), [group("c", [1.0], [])]) for name in "ab"]
    assert base_pairs(kept, 1, BasePairs()) == (0.0, 0)
    assert distance_from_base(kept, 1, BasePairs(4.0, 2)) == (None, None)
