"""A reward as a plain function whose answers are checked. Users import it from `lasro.reward_sdk`."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import update_wrapper
from numbers import Real
from typing import Any

from PIL import Image

from lasro.errors import ConfigError, LasroError, RewardError

log = logging.getLogger("lasro")


@dataclass(frozen=True)
class RejectedItem:
    """Stands in a reward's list for an image that it cannot score; never counted as a number."""

    reason: str


Scores = list[float | RejectedItem]
RewardFunction = Callable[[list[Image.Image], list[str], list[Any]], Sequence[float | RejectedItem]]


class Reward:
    """A reward function whose answers are checked: one finite number or RejectedItem per image."""

    def __init__(self, function: RewardFunction) -> None:
        self._function = function
        self.name: str = getattr(function, "__name__", type(function).__name__)
        update_wrapper(self, function)

    def __call__(self, images: list[Image.Image], prompts: list[str], metadata: list[Any] | None = None) -> Scores:
        """Score RGB images; raises RewardError when the function fails or answers in another form."""
        given = [None] * len(images) if metadata is None else metadata
        try:
            answer = self._function(images, prompts, given)
        except LasroError:
            raise
        except Exception as error:  # the function is the user's: whatever it raises is reported under its name
            log.exception("%s failed", self.name)
            raise RewardError(f"{self.name}: raised {type(error).__name__}: {error}") from error
        return self._checked(answer, len(images))

    def _checked(self, answer: object, count: int) -> Scores:
        try:
            scores = list(answer)  # pyright: ignore[reportArgumentType]
        except TypeError as error:
            got = type(answer).__name__
            raise RewardError(f"{self.name}: returned {got}, expected a list of {count} numbers") from error
        if len(scores) != count:
            raise RewardError(f"{self.name}: returned {len(scores)} scores, expected one per image ({count})")
        return [self._number(score, index) for index, score in enumerate(scores)]

    def _number(self, score: object, index: int) -> float | RejectedItem:
        if isinstance(score, RejectedItem):
            return score
        if getattr(score, "shape", None) == ():  # a 0-d array or tensor
            score = score.item()  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(score, bool) or not isinstance(score, Real) or not math.isfinite(score):
            wanted = "a finite number or RejectedItem(reason)"
            raise RewardError(f"{self.name}: scores[{index}] is {score!r:.60}, expected {wanted}")
        return float(score)


def reward(function: RewardFunction) -> Reward:
    """Declare `function(images, prompts, metadata) -> list of float or RejectedItem` as a reward."""
    return Reward(function)


def load_reward(target: str) -> Reward:
    """Import `module:function`; raises ConfigError where that is no reward."""
    module_name, separator, name = target.partition(":")
    if not separator:
        raise ConfigError(f"got {target!r}, expected MODULE:FUNCTION")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{target}: cannot import {module_name} ({error}); is it on PYTHONPATH?") from error
    found = getattr(module, name, None)
    if not isinstance(found, Reward):
        got = "nothing" if found is None else type(found).__name__
        raise ConfigError(f"{target}: got {got}, expected a function decorated with @reward")
    return found
