"""A method: how one update moves the generator. One module for each; docs/add-a-method.md shows how to write one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from lasro.config import RunSettings
from lasro.models.base import GeneratorModel
from lasro.training.generator_trainer import GeneratorTrainer, StepStatistics
from lasro.training.prompts import Prompt
from lasro.training.score_source import ScoreSource


class Method(ABC):
    """Makes updates of a generator: `trainer` samples, predicts and applies a loss, the method says which loss.

    Settings are the method's own kind of `[method]`, joined to the others in `lasro.config.method`.
    """

    needs_surrogate: ClassVar[bool] = True
    """Whether a run trains a surrogate for it; without one, `source` is None in `update`."""

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

    def state(self) -> dict[str, Any]:
        """What it must remember to resume, for JSON."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`, or begin again from that of the start."""
        assert not state, f"{type(self).__name__} remembers nothing, and got {sorted(state)}"
