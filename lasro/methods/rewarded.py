"""What methods have in common that learn from rewards themselves, and train no surrogate."""

from __future__ import annotations

from typing import Any, Generic, Self, TypeVar

from lasro.config import RunSettings
from lasro.config.method import RewardedSettings
from lasro.errors import ConfigError
from lasro.methods.base import Method
from lasro.methods.regulariser import Regulariser, regulariser_of
from lasro.models.base import GeneratorModel

S = TypeVar("S", bound=RewardedSettings)


class RewardedMethod(Method, Generic[S]):
    """Made of its settings and the regulariser that they name."""

    needs_surrogate = False
    learns_from_rewards = True

    def __init__(self, settings: S, regulariser: Regulariser) -> None:
        self.settings, self.regulariser = settings, regulariser

    @classmethod
    def create(cls, config: RunSettings, model: GeneratorModel) -> Self:
        settings: Any = config.method
        kind, train = settings.type, config.train
        for name, got, expected in (
            ("overlap", train.overlap, False),
            ("second_step_rounds", train.second_step_rounds, 0),
        ):
            if got != expected:
                raise ConfigError(
                    f"train.{name}: got {got}, expected {expected} for method.type {kind}, which has no surrogate"
                )
        if train.seeds_per_prompt < 2:
            raise ConfigError(
                f"train.seeds_per_prompt: got {train.seeds_per_prompt}, expected at least 2 for method.type {kind}, "
                "which compares samples of a prompt"
            )
        cls.check(config, model)
        return cls.build(settings, regulariser_of(settings, model), model)

    @classmethod
    def build(cls, settings: S, regulariser: Regulariser, model: GeneratorModel) -> Self:
        """The method; raises ModelError where the model lacks what it needs."""
        return cls(settings, regulariser)

    @classmethod
    def check(cls, config: RunSettings, model: GeneratorModel) -> None:
        """Raise ConfigError or ModelError for what this method cannot work with."""


def check_transitions(config: RunSettings) -> None:
    """Raise ConfigError where samples have no step that another follows."""
    if max(config.train.steps) < 2:
        raise ConfigError(
            f"train.steps: got {list(config.train.steps)}, expected one of at least 2 for method.type "
            f"{config.method.type}, which learns from what is drawn between steps"
        )
