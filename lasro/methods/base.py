"""A method: how one update moves the generator. One module for each; docs/add-a-method.md shows how to write one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from lasro.config import RunSettings
from lasro.models.base import GeneratorModel
from lasro.training.generator_trainer import GeneratorTrainer, StepStatistics
from lasro.training.prompts import Prompt
from lasro.training.rewarded_group import RewardedGroup
from lasro.training.score_source import ScoreSource


class Method(ABC):
    """Makes updates of a generator: `trainer` samples, predicts and applies a loss, the method says which loss.

    Settings are the method's own kind of `[method]`, joined to the others in `lasro.config.method`.
    """

    needs_surrogate: ClassVar[bool] = True
    """Whether a run trains a surrogate for it; without one, `source` is None in `update`."""
    learns_from_rewards: ClassVar[bool] = False
    """Whether `observe` is to be called with each round's rewards."""

    @classmethod
    @abstractmethod
    def create(cls, config: RunSettings, model: GeneratorModel) -> Method:
        """The method of a run, from the sections that it needs; raises ConfigError or ModelError."""

    @abstractmethod
    def update(self, trainer: GeneratorTrainer, batch: Sequence[Prompt], source: ScoreSource | None) -> StepStatistics:
        """One update of the generator, on these prompts, by `trainer.apply`.

        Draws come from `trainer.draws()` alone, so that a resumed run repeats them. Raises NonFiniteError before
        anything that is not finite reaches the optimiser.
        """

    def observe(self, trainer: GeneratorTrainer, groups: Sequence[RewardedGroup]) -> bool:
        """Take in a round's rewards, before the updates of that round; returns whether there is anything to update by.

        The generator still is the one that drew the groups. Each of several processes gets all of them.
        """
        raise NotImplementedError(f"{type(self).__name__} learns from rewards, but takes in none")

    def state(self) -> dict[str, Any]:
        """What it must remember to resume, for JSON, besides `tensors`."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """What it must remember to resume, on the CPU, by name. A round's own rewards are not among it."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`, or begin again from that of the start."""
        assert not state, f"{type(self).__name__} remembers nothing, and got {sorted(state)}"

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from `tensors()`, after `load_state`."""
        assert not tensors, f"{type(self).__name__} remembers no tensors, and got {sorted(tensors)}"
