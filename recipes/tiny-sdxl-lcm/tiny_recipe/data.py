"""What training draws from: scenes and emoji with their captions, the same for the same recipe.

Shape legend: B images of a batch, N of the whole bank, L tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lasro.demo.shapes import BACKGROUNDS
from tiny_recipe.captions import draw_scene, emoji_caption, emoji_prompt, noisy_caption
from tiny_recipe.config import Recipe
from tiny_recipe.drawing import Drawn, background_colors, distance_fields, draw_emoji, draw_scenes, scene_rows
from tiny_recipe.emoji import read_emoji

BACKGROUND_NAMES = tuple(BACKGROUNDS)


class Shapes:
    """`recipe.data.scenes` captioned scenes on the device, drawn when asked for."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        rng = np.random.default_rng([recipe.seed, 1])
        scenes = [draw_scene(rng, recipe.data) for _ in range(recipe.data.scenes)]
        self.captions = [noisy_caption(scene, rng, recipe.data) for scene in scenes]
        self._rows, self._fields = scene_rows(scenes, device), distance_fields(device)
        self._size_px = recipe.data.image_px

    def draw(self, index_B: Tensor, generator: torch.Generator) -> Drawn:
        return draw_scenes(self._rows.pick(index_B), self._fields, self._size_px)


class EmojiBank:
    """As many captioned emoji as there are scenes, each placed anew when drawn."""

    def __init__(self, recipe: Recipe, path: Path, device: torch.device) -> None:
        emoji = read_emoji(path)
        rng = np.random.default_rng([recipe.seed, 2])
        which = rng.integers(len(emoji.names), size=recipe.data.scenes)
        captioned = [emoji_caption(emoji.names[i], emoji.styles[i], rng, recipe.data) for i in which]
        self.captions = [text for text, _ in captioned]
        self.vocabulary = [emoji_prompt(*pair) for pair in zip(emoji.names, emoji.styles, strict=True)]
        self._rows, self._which_N = emoji.rows(device), torch.from_numpy(which).to(device)
        backgrounds = [BACKGROUND_NAMES.index(background) for _, background in captioned]
        self._backgrounds_N3 = background_colors(BACKGROUND_NAMES, device)[torch.tensor(backgrounds, device=device)]
        self._size_px = recipe.data.image_px

    def draw(self, index_B: Tensor, generator: torch.Generator) -> Drawn:
        return draw_emoji(self._rows, self._which_N[index_B], self._backgrounds_N3[index_B], self._size_px, generator)


class TrainingData:
    """Batches of which `emoji_share` are emoji and the rest shapes."""

    def __init__(self, recipe: Recipe, emoji_path: Path, device: torch.device) -> None:
        self.device, self._share, self._count = device, recipe.data.emoji_share, recipe.data.scenes
        self._shapes = Shapes(recipe, device)
        self._emoji = EmojiBank(recipe, emoji_path, device) if self._share else None

    def corpus(self) -> Iterator[str]:
        """Texts that the vocabulary is learned from."""
        yield from self._shapes.captions
        if self._emoji is not None:
            yield from self._emoji.vocabulary

    def batch(self, count: int, generator: torch.Generator) -> Drawn:
        """`count` images, drawn with the generator, which lives on the device."""
        return self._draw(count, generator)[0]

    @property
    def captions(self) -> list[str]:
        """Of all scenes and then of all emoji."""
        return self._shapes.captions + (self._emoji.captions if self._emoji is not None else [])

    def captioned_batch(self, count: int, generator: torch.Generator) -> tuple[Drawn, Tensor]:
        """Images, and where each one's caption stands in `captions`, int64 [B]."""
        drawn, places = self._draw(count, generator)
        return drawn, torch.cat([index_B + bank * self._count for bank, index_B in enumerate(places)])

    def _draw(self, count: int, generator: torch.Generator) -> tuple[Drawn, list[Tensor]]:
        emoji = round(count * self._share)
        wanted: list[tuple[Shapes | EmojiBank, int]] = [(self._shapes, count - emoji)]
        if self._emoji is not None:
            wanted.append((self._emoji, emoji))
        places = [
            torch.randint(self._count, (number,), generator=generator, device=self.device) for _, number in wanted
        ]
        parts = [bank.draw(index_B, generator) for (bank, _), index_B in zip(wanted, places, strict=True)]
        return Drawn(*(torch.cat(tensors) for tensors in zip(*parts, strict=True))), places
