"""One step or two: everything is sampled, scored and reported for both numbers of denoising steps. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from lasro.wire import NumSteps

ALL_NUM_STEPS: tuple[NumSteps, NumSteps] = (1, 2)
JSON_NAMES: dict[NumSteps, str] = {1: "one_step", 2: "two_step"}
"""Keys of every JSON file, which are also the fields of `ByNumSteps`."""
T = TypeVar("T")


@dataclass(frozen=True)
class ByNumSteps(Generic[T]):
    """A value of the one-step samples and one of the two-step samples. `by[2]` is the latter."""

    one_step: T
    two_step: T

    @classmethod
    def of(cls, measure: Callable[[NumSteps], T]) -> ByNumSteps[T]:
        """What `measure` gives for each number of steps, one step first."""
        return cls(measure(1), measure(2))

    def __getitem__(self, num_steps: NumSteps) -> T:
        return self.one_step if num_steps == 1 else self.two_step

    def values(self) -> tuple[T, T]:
        """Both, one step first."""
        return self.one_step, self.two_step

    def by_name(self) -> dict[str, T]:
        """Both under their JSON names, one step first."""
        return {name: self[num_steps] for num_steps, name in JSON_NAMES.items()}
