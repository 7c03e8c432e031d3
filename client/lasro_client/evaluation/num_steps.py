"""Everything is sampled, scored and reported for each number of denoising steps of a run. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, PlainSerializer

from lasro.num_steps import JSON_NAMES, NumSteps

T = TypeVar("T")
NUMBERS = {name: num_steps for num_steps, name in JSON_NAMES.items()}


def by_name(values: Mapping[NumSteps, T]) -> dict[str, T]:
    """Under the JSON names, `one_step` first."""
    return {JSON_NAMES[num_steps]: values[num_steps] for num_steps in sorted(values)}


def _by_number(values: Any) -> Any:
    if not isinstance(values, Mapping):
        return values
    try:
        return {NUMBERS[key] if isinstance(key, str) else key: value for key, value in values.items()}
    except KeyError as error:
        raise ValueError(f"got {error.args[0]!r}, expected a number of steps such as one_step") from error


ByNumSteps = Annotated[dict[NumSteps, T], BeforeValidator(_by_number), PlainSerializer(by_name)]
"""A value of each number of steps, fewest first; in JSON under their names."""


def unmeasured(steps: Iterable[NumSteps]) -> dict[NumSteps, float | None]:
    """No value of any of them."""
    return dict.fromkeys(steps)
