"""Coloured shapes: the palette, the prompt grammar and the drawing that the bundled model learned from.

    scene = random_scene(np.random.default_rng(0))
    caption(scene)   # 'a red circle left of a blue square on a cream background'
    draw(scene)      # uint8 [128, 128, 3]

numpy only. Coordinates: the image spans [-1, 1] on both axes, x to the right, y down; angles clockwise in radians.
Shape legend: H rows, W columns, 3 RGB.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 215, 50),
    "green": (50, 165, 70),
    "blue": (45, 95, 215),
    "purple": (140, 60, 185),
    "pink": (245, 130, 180),
    "brown": (130, 85, 50),
    "black": (30, 30, 30),
    "gray": (140, 140, 140),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "cream": (250, 240, 215),
    "sky": (190, 225, 250),
    "mint": (200, 240, 220),
    "navy": (25, 35, 75),
}
MAX_ANGLE = 0.25
EDGE_SHARPNESS = 2.2  # of the sigmoid over the signed distance in pixels
RELATIONS = ("and", "left of", "above")
Plane = NDArray[np.float64]


def _circle(x: Plane, y: Plane) -> Plane:
    return np.hypot(x, y) - 1


def _square(x: Plane, y: Plane) -> Plane:
    return np.maximum(abs(x), abs(y)) - 0.86


def _triangle(x: Plane, y: Plane) -> Plane:
    return np.maximum(y, np.sqrt(0.75) * abs(x) - 0.5 * y) - 0.55


def _star(x: Plane, y: Plane, inner_radius: float = 0.42) -> Plane:
    sector = 2 * np.pi / 5
    turned = np.remainder(np.arctan2(x, -y) + sector / 2, sector) - sector / 2
    radius = np.hypot(x, y)
    along, across = radius * np.cos(turned), radius * abs(np.sin(turned))
    inner_along, inner_across = inner_radius * np.cos(sector / 2), inner_radius * np.sin(sector / 2)
    normal = np.array([inner_across, 1 - inner_along]) / np.hypot(inner_across, 1 - inner_along)
    return (along - 1) * normal[0] + across * normal[1]


def _heart(x: Plane, y: Plane, scale: float = 0.62) -> Plane:
    across, up = abs(x) * scale, 0.52 - y * scale
    lobe = np.hypot(across - 0.25, up - 0.75) - np.sqrt(2) / 4
    edge = 0.5 * np.maximum(across + up, 0)
    nearest = np.minimum(across**2 + (up - 1) ** 2, (across - edge) ** 2 + (up - edge) ** 2)
    return np.where(across + up > 1, lobe, np.sqrt(nearest) * np.sign(across - up)) / scale


def _ring(x: Plane, y: Plane) -> Plane:
    return abs(np.hypot(x, y) - 0.78) - 0.22


def _diamond(x: Plane, y: Plane) -> Plane:
    return abs(x) + abs(y) - 1.05


def _cross(x: Plane, y: Plane) -> Plane:
    wide, tall = np.maximum(abs(x) - 0.95, abs(y) - 0.33), np.maximum(abs(x) - 0.33, abs(y) - 0.95)
    return np.minimum(wide, tall)


SIGNED_DISTANCES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "ring": _ring,
    "diamond": _diamond,
    "cross": _cross,
}
SHAPES: tuple[str, ...] = tuple(SIGNED_DISTANCES)


@dataclass(frozen=True)
class NounPhrase:
    """`a red circle`."""

    color: str
    shape: str


@dataclass(frozen=True)
class ShapePrompt:
    """What a shape prompt asks for. `background` is None where the prompt names none."""

    phrases: tuple[NounPhrase, ...]
    relation: str | None = None
    background: str | None = None

    def text(self) -> str:
        """The prompt in the grammar's own spelling; `parse_prompt` reads it back."""
        named = f" {self.relation} ".join(f"a {phrase.color} {phrase.shape}" for phrase in self.phrases)
        return named if self.background is None else f"{named} on a {self.background} background"


@dataclass(frozen=True)
class ObjectSpec:
    """One drawn object: centre (x, y), size (half its extent, about) and clockwise angle."""

    color: str
    shape: str
    x: float
    y: float
    size: float
    angle: float = 0.0


@dataclass(frozen=True)
class Scene:
    """One or two objects on a plain background; `relation` is None for one object."""

    objects: tuple[ObjectSpec, ...]
    relation: str | None = None
    background: str = "white"

    def with_colors(self, colors: Sequence[str]) -> Scene:
        """The same scene in other colours, one per object."""
        objects = tuple(replace(spec, color=color) for spec, color in zip(self.objects, colors, strict=True))
        return replace(self, objects=objects)


_PHRASE = rf"(?:an? |the |one )?({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
_PROMPT = re.compile(
    rf"{_PHRASE}(?: (?:to the )?({'|'.join(RELATIONS)}) {_PHRASE})?"
    rf"(?: on (?:an? |the )?({'|'.join(BACKGROUNDS)}) background)?"
)


def parse_prompt(text: str) -> ShapePrompt | None:
    """Read a shape prompt; None where the text is anything else.

    Capitals, commas, a final full stop, `an` for `a` and `grey` for `gray` are forgiven.
    """
    words = re.sub(r"[,\s]+", " ", text.lower()).strip().removesuffix(".").replace("grey", "gray")
    match = _PROMPT.fullmatch(words)
    if match is None:
        return None
    color, shape, relation, second_color, second_shape, background = match.groups()
    phrases = (NounPhrase(color, shape),)
    if relation is not None:
        phrases += (NounPhrase(second_color, second_shape),)
    return ShapePrompt(phrases, relation, background)


def caption(scene: Scene, name_white: bool = False) -> str:
    """The prompt that describes a scene; a white background goes unnamed unless `name_white`."""
    named = scene.background != "white" or name_white
    phrases = tuple(NounPhrase(spec.color, spec.shape) for spec in scene.objects)
    return ShapePrompt(phrases, scene.relation, scene.background if named else None).text()


def coverage(spec: ObjectSpec, size_px: int) -> NDArray[np.float64]:
    """How much of each pixel the object covers, in [0, 1], [size_px, size_px]."""
    axis = (np.arange(size_px) + 0.5) / size_px * 2 - 1
    x, y = axis[None, :] - spec.x, axis[:, None] - spec.y
    cos, sin = np.cos(spec.angle), np.sin(spec.angle)
    distance = SIGNED_DISTANCES[spec.shape]((x * cos + y * sin) / spec.size, (y * cos - x * sin) / spec.size)
    distance_px = distance * spec.size * size_px / 2
    return 1 / (1 + np.exp(np.clip(distance_px * EDGE_SHARPNESS, -50, 50)))


def draw(scene: Scene, size_px: int = 128) -> NDArray[np.uint8]:
    """The scene as uint8 RGB [size_px, size_px, 3], later objects over earlier ones."""
    image = np.tile(np.array(BACKGROUNDS[scene.background], np.float64), (size_px, size_px, 1))
    for spec in scene.objects:
        alpha = coverage(spec, size_px)[..., None]
        image = image * (1 - alpha) + np.array(COLORS[spec.color]) * alpha
    return image.round().astype(np.uint8)


_DIRECTIONS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # from the first object to the second


def random_scene(
    rng: np.random.Generator, num_objects: int = 2, backgrounds: Sequence[str] = tuple(BACKGROUNDS)
) -> Scene:
    """One or two objects of different colours and any shapes, placed as the bundled model saw them."""
    colors = rng.choice(list(COLORS), num_objects, replace=False).tolist()
    shapes = rng.choice(SHAPES, num_objects).tolist()
    background = str(rng.choice(list(backgrounds)))
    angles = rng.uniform(-MAX_ANGLE, MAX_ANGLE, num_objects).tolist()
    if num_objects == 1:
        x, y = rng.uniform(-0.3, 0.3, 2).tolist()
        spec = ObjectSpec(colors[0], shapes[0], x, y, float(rng.uniform(0.35, 0.62)), angles[0])
        return Scene((spec,), None, background)
    relation = RELATIONS[rng.integers(len(RELATIONS))]
    turn = {"left of": 0, "above": 1}.get(relation, int(rng.integers(4)))
    half_way = rng.uniform(0.44, 0.55) * np.array(_DIRECTIONS[turn])
    centers = np.stack([-half_way, half_way]) + rng.uniform(-0.12, 0.12, (2, 2))
    sizes = rng.uniform(0.26, 0.4, 2).tolist()
    rows = zip(colors, shapes, centers.tolist(), sizes, angles, strict=True)
    specs = tuple(ObjectSpec(color, shape, x, y, size, angle) for color, shape, (x, y), size, angle in rows)
    return Scene(specs, relation, background)
