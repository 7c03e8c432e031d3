"""Gain in reward and drift of an adapter on held-out prompts, on noise that no run has seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from lasro.models.base import GeneratorModel
from lasro.num_steps import ONE_AND_TWO, NumSteps
from lasro.reward_function import Reward
from lasro.training.prompts import Prompt, read_prompts
from lasro_client.evaluation.drift import drift_figure, mean_absolute_difference
from lasro_client.evaluation.paired_statistics import Estimate, paired_difference, ratio_of_means
from lasro_client.evaluation.score_prompts import batch_size, draw_in_steps

PROMPTS = Path("configs/prompts")
EMOJI_HELD_OUT, SHAPES_HELD_OUT = 20, 64
FIRST_SEEDS = (2_000_000, 3_000_000)
"""Prompt i is drawn with seed + i: far from the 10,000 of a run's evaluation, and from all others."""
Images = dict[NumSteps, list[np.ndarray]]
"""uint8 [H, W, 3], a prompt's one after the other's, for each noise in turn."""
Values = list[float | None]
T = TypeVar("T")


@dataclass(frozen=True)
class PromptSplit:
    """What is trained on, and what is measured on with how many noises of each prompt."""

    train: list[Prompt]
    held_out: list[Prompt]
    noises: int


def emoji() -> PromptSplit:
    """64 emoji: the last 20 are held out."""
    every = read_prompts(PROMPTS / "emoji-drift.txt")
    return PromptSplit(every[:-EMOJI_HELD_OUT], every[-EMOJI_HELD_OUT:], noises=2)


def shapes() -> PromptSplit:
    """Two coloured shapes: the demo's training prompts, and the first 64 of its held-out ones."""
    held_out = read_prompts(PROMPTS / "shapes-held-out.txt")[:SHAPES_HELD_OUT]
    return PromptSplit(read_prompts(PROMPTS / "shapes-train.txt"), held_out, noises=1)


PROMPT_SPLITS: dict[str, Callable[[], PromptSplit]] = {"emoji": emoji, "shapes": shapes}


@dataclass(frozen=True)
class Measured:
    """At one number of steps: the reward gained, and `drift_figure(...).as_dict()`."""

    gain: Estimate
    drift: dict[str, Any]
    diversity: Estimate | None = None
    """Mean absolute pixel difference between two noises of a prompt, over the base's; None for one noise."""

    @property
    def changes_of_seed(self) -> float:
        """Mean absolute pixel difference to the base, over that between two noises of the base."""
        return self.drift["ratio"]["mean"]

    def as_dict(self) -> dict[str, Any]:
        gain = self.gain.as_dict() | {"n": self.gain.n, "failed": self.gain.failed}
        diversity = {} if self.diversity is None else {"diversity": self.diversity.as_dict()}
        return {"gain": gain, "drift": self.drift} | diversity


class HeldOut:
    """The base's images of held-out prompts and their rewards, to measure adapters of the same model against."""

    def __init__(self, model: GeneratorModel, reward: Reward, split: PromptSplit) -> None:
        self.reward, self.split = reward, split
        first, second = (self._draw(model, first_seed, base=True) for first_seed in FIRST_SEEDS)
        rewards, others = ({n: self._rewards(of_n) for n, of_n in images.items()} for images in (first, second))
        self._rewards_by_noise = rewards, others
        if split.noises == 2:
            rewards, first, second = _joined(rewards, others), _joined(first, second), _joined(second, first)
        self.base, self.other_noise, self.base_rewards = first, second, rewards

    @cached_property
    def deviation(self) -> float:
        """The base's `within_prompt_deviation`; raises ValueError where the reward scores none of these prompts."""
        return within_prompt_deviation(*self._rewards_by_noise)

    def measure(self, model: GeneratorModel) -> dict[NumSteps, Measured]:
        """Of the model with the adapter that it has now."""
        return self.compare(self.draw(model))

    def draw(self, model: GeneratorModel) -> list[Images]:
        """Of the same model, for each noise."""
        return [self._draw(model, first_seed, base=False) for first_seed in FIRST_SEEDS[: self.split.noises]]

    def compare(self, drawn: Sequence[Images]) -> dict[NumSteps, Measured]:
        """What `draw` has drawn, with the base."""
        return {n: self._compare(n, [image for part in drawn for image in part[n]]) for n in ONE_AND_TWO}

    def _compare(self, steps: NumSteps, images: list[np.ndarray]) -> Measured:
        gain = paired_difference(self.base_rewards[steps], self._rewards(images))
        drift = drift_figure(self.base[steps], images, self.other_noise[steps]).as_dict()
        if self.split.noises != 2:
            return Measured(gain, drift)
        own, base = (_between_noises(of_both) for of_both in (images, self.base[steps]))
        return Measured(gain, drift, ratio_of_means(own, base))

    def _draw(self, model: GeneratorModel, first_seed: int, base: bool) -> Images:
        prompts, images = self.split.held_out, Images({1: [], 2: []})
        size = batch_size(model.latent_shape)
        for start in range(0, len(prompts), size):
            texts = [prompt.text for prompt in prompts[start : start + size]]
            seeds = range(first_seed + start, first_seed + start + len(texts))
            drawn = draw_in_steps(model, texts, seeds, base)
            for num_steps, images_BHWC in drawn.items():
                images[num_steps].extend(images_BHWC)
        return images

    def _rewards(self, images: Sequence[np.ndarray]) -> Values:
        prompts = self.split.held_out * (len(images) // len(self.split.held_out))
        texts, metadata = [prompt.text for prompt in prompts], [prompt.metadata for prompt in prompts]
        scores = self.reward([Image.fromarray(image) for image in images], texts, metadata)
        return [score if isinstance(score, float) else None for score in scores]


def _between_noises(images: Sequence[np.ndarray]) -> list[float]:
    """Mean absolute pixel difference of each prompt's two images, whose first ones all come before the others."""
    half = len(images) // 2
    return [mean_absolute_difference(a, b) for a, b in zip(images[:half], images[half:], strict=True)]


def _joined(first: Mapping[NumSteps, list[T]], second: Mapping[NumSteps, list[T]]) -> dict[NumSteps, list[T]]:
    return {n: of_n + second[n] for n, of_n in first.items()}


def within_prompt_deviation(first: Mapping[NumSteps, Values], second: Mapping[NumSteps, Values]) -> float:
    """Standard deviation of rewards over noises within a prompt, pooled over prompts and both numbers of steps.

    Each argument holds a reward per prompt, for one noise. Raises ValueError where no prompt has both.
    """
    pairs = zip(first[1] + first[2], second[1] + second[2], strict=True)
    variances = [(a - b) ** 2 / 2 for a, b in pairs if a is not None and b is not None]
    if not variances:
        raise ValueError("got no prompt with two rewards, expected at least one")
    return math.sqrt(math.fsum(variances) / len(variances))
