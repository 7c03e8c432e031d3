"""Scenes and what their captions make of them: a stated share is wrong, as captions of the web are."""

from __future__ import annotations

import numpy as np

from lasro.demo.shapes import BACKGROUNDS, RELATIONS, Scene, caption, random_scene
from tiny_recipe.config import DataSettings

TINTS = tuple(name for name in BACKGROUNDS if name != "white")
TINT_SHARE_OF_EMOJI = 0.4
WHITE_NAMED_OF_EMOJI = 0.15


def draw_scene(rng: np.random.Generator, settings: DataSettings) -> Scene:
    """One or two objects on white or a tint, in the settings' shares."""
    num_objects = 1 if rng.random() < settings.single_objects else 2
    return random_scene(rng, num_objects, (_background(rng, settings.white_backgrounds),))


def noisy_caption(scene: Scene, rng: np.random.Generator, settings: DataSettings) -> str:
    """A caption of the scene, true but for the stated shares of two-object captions."""
    name_white = bool(rng.random() < settings.white_named)
    return caption(misheard(scene, rng, settings), name_white)


def misheard(scene: Scene, rng: np.random.Generator, settings: DataSettings) -> Scene:
    """The scene that the caption describes: colours swapped or another relation, each in its share."""
    if scene.relation is None:
        return scene
    colors = [spec.color for spec in scene.objects]
    if rng.random() < settings.swapped_colors:
        colors.reverse()
    relation = scene.relation
    if rng.random() < settings.wrong_relations:
        relation = str(rng.choice([each for each in RELATIONS if each != relation]))
    heard = scene.with_colors(colors)
    return Scene(heard.objects, relation, heard.background)


def emoji_caption(name: str, style: str, rng: np.random.Generator, settings: DataSettings) -> tuple[str, str]:
    """A caption such as `dog face, noto style on a sky background`, and that background."""
    background = _background(rng, 1 - TINT_SHARE_OF_EMOJI)
    text = emoji_prompt(name, style) if rng.random() < settings.style_named else name
    if background != "white" or rng.random() < WHITE_NAMED_OF_EMOJI:
        text += f" on a {background} background"
    return text, background


def emoji_prompt(name: str, style: str) -> str:
    return f"{name}, {style} style"


def _background(rng: np.random.Generator, white_share: float) -> str:
    return "white" if rng.random() < white_share else TINTS[rng.integers(len(TINTS))]
