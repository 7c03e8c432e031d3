"""Palette, grammar, drawing and the prompt files made from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasro.demo.prompts import LIGHT_BACKGROUNDS, prompt_sets
from lasro.demo.shapes import (
    BACKGROUNDS,
    COLORS,
    RELATIONS,
    SHAPES,
    NounPhrase,
    ObjectSpec,
    Scene,
    ShapePrompt,
    caption,
    coverage,
    draw,
    parse_prompt,
    random_scene,
)

PROMPT_FOLDER = Path(__file__).parents[2] / "configs" / "prompts"
phrases = st.builds(NounPhrase, st.sampled_from(list(COLORS)), st.sampled_from(SHAPES))
backgrounds = st.none() | st.sampled_from(list(BACKGROUNDS))
shape_prompts = st.builds(ShapePrompt, st.tuples(phrases), st.none(), backgrounds) | st.builds(
    ShapePrompt, st.tuples(phrases, phrases), st.sampled_from(RELATIONS), backgrounds
)


@given(shape_prompts)
def test_every_prompt_of_the_grammar_is_read_back(prompt: ShapePrompt) -> None:
    """Guards against a word of the grammar that the detector cannot read."""
    assert parse_prompt(prompt.text()) == prompt


@given(st.text(max_size=80))
def test_other_text_is_none_or_reads_back(text: str) -> None:
    """Guards against a crash, or a half-understood prompt, on whatever users type."""
    prompt = parse_prompt(text)
    assert prompt is None or parse_prompt(prompt.text()) == prompt


@pytest.mark.parametrize(
    "text",
    [
        "An orange star, left of a Blue ring on a cream background.",
        "orange star left of blue ring on a cream background",
        "  a orange star to the left of a blue ring,  on a cream background",
    ],
)
def test_spelling_is_forgiven(text: str) -> None:
    """Guards against rejecting prompts that any person would understand."""
    pair = (NounPhrase("orange", "star"), NounPhrase("blue", "ring"))
    assert parse_prompt(text) == ShapePrompt(pair, "left of", "cream")


@pytest.mark.parametrize(
    "text", ["", "dog face, noto style", "a red circle left of", "a red circle on a red background", "red", "a b c"]
)
def test_other_prompts_are_none(text: str) -> None:
    """Guards against scoring a prompt that asks for something else."""
    assert parse_prompt(text) is None


def test_grey_is_gray() -> None:
    """Guards against a spelling that only one side of the Atlantic uses."""
    assert parse_prompt("a grey heart") == ShapePrompt((NounPhrase("gray", "heart"),))


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_drawing_has_its_colors(shape: str, background: str) -> None:
    """Guards against swapped channels and against alpha that leaks into the background."""
    scene = Scene((ObjectSpec("red", shape, 0.1, -0.1, 0.5, 0.2),), None, background)
    pixels = draw(scene).reshape(-1, 3)
    assert (pixels == COLORS["red"]).all(-1).sum() > 100
    assert (pixels == BACKGROUNDS[background]).all(-1).sum() > 8000


@pytest.mark.parametrize(
    ("shape", "area"),
    [("circle", np.pi), ("square", 1.72**2), ("diamond", 2 * 1.05**2), ("cross", 4 * 0.66 * 0.95 - 0.66**2)],
)
def test_covered_area_is_the_shape_s_own(shape: str, area: float) -> None:
    """Guards the signed distances: area of the unit shape, at any place and angle, is known in closed form."""
    covered = coverage(ObjectSpec("red", shape, 0.07, -0.04, 0.5, 0.21), 256).sum() / 128**2
    assert covered == pytest.approx(area * 0.25, rel=0.01)


def test_a_ring_has_a_hole_and_y_points_down() -> None:
    """Guards against upside-down triangles and filled rings."""
    assert coverage(ObjectSpec("red", "ring", 0, 0, 0.8), 65)[32, 32] < 0.01
    triangle = coverage(ObjectSpec("red", "triangle", 0, 0, 0.8), 64)
    assert triangle[:32].sum() < triangle[32:].sum()


def test_with_colors_swaps_only_colors() -> None:
    """Guards the recipe's captions: a swapped scene must differ in colour alone."""
    scene = random_scene(np.random.default_rng(1))
    swapped = scene.with_colors([spec.color for spec in reversed(scene.objects)])
    assert [spec.shape for spec in swapped.objects] == [spec.shape for spec in scene.objects]
    assert swapped.with_colors([spec.color for spec in scene.objects]) == scene


def test_scenes_match_their_relation() -> None:
    """Guards against captions whose relation the drawing contradicts."""
    rng = np.random.default_rng(2)
    for scene in (random_scene(rng) for _ in range(200)):
        first, second = scene.objects
        assert first.color != second.color
        assert scene.relation != "left of" or first.x < second.x
        assert scene.relation != "above" or first.y < second.y
        assert parse_prompt(caption(scene)) is not None


def test_prompt_files_are_what_their_seed_gives() -> None:
    """Guards against edited prompt files; `python -m lasro.demo.prompts configs/prompts` writes them again."""
    for name, prompts in prompt_sets().items():
        assert (PROMPT_FOLDER / name).read_text(encoding="utf-8").splitlines() == prompts, name


def test_no_pair_of_objects_is_in_two_prompt_files() -> None:
    """Guards the evaluation: held-out prompts must ask for pairs that training never saw."""
    pairs: list[frozenset[NounPhrase]] = []
    for prompts in prompt_sets().values():
        parsed = [parse_prompt(prompt) for prompt in prompts]
        pairs += [frozenset(prompt.phrases) for prompt in parsed if prompt is not None]
    assert len(set(pairs)) == len(pairs) == 256 + 768
    assert all(len({phrase.color for phrase in pair}) == 2 for pair in pairs)


def test_training_prompts_cover_the_grammar() -> None:
    """Guards against a training set without some colour, shape, relation or background."""
    parsed = [parse_prompt(prompt) for prompt in prompt_sets()["shapes-train.txt"]]
    prompts = [prompt for prompt in parsed if prompt is not None]
    assert {phrase for prompt in prompts for phrase in prompt.phrases} == {
        NounPhrase(color, shape) for color in COLORS for shape in SHAPES
    }
    assert {prompt.relation for prompt in prompts} == set(RELATIONS)
    assert {prompt.background for prompt in prompts} == {None, *LIGHT_BACKGROUNDS}


def test_emoji_prompts_are_distinct_and_no_shape_prompts() -> None:
    """Guards the drift figure: its prompts must lie outside what is trained on."""
    lines = (PROMPT_FOLDER / "emoji-drift.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(lines)) == len(lines) == 64
    assert all(line.endswith(" style") and parse_prompt(line) is None for line in lines)
