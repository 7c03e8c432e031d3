"""How many steps of a sampler make a sample, and what each number of them is called.

Imports no torch and no pydantic: the command line asks it for its help.
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le

MOST_STEPS = 8
NumSteps = Annotated[int, Ge(1), Le(MOST_STEPS)]
"""Steps that a sample took."""
ONE_AND_TWO: tuple[NumSteps, ...] = (1, 2)
"""What is sampled where nothing else is said."""
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
JSON_NAMES: dict[NumSteps, str] = {n: f"{word}_step" for n, word in enumerate(WORDS, 1)}
"""Keys of JSON files, and part of names on the wire: `one_step`, `two_step`, ..."""


def title(num_steps: NumSteps) -> str:
    """`One step`, `Two steps`, ..."""
    return f"{WORDS[num_steps - 1].capitalize()} step{'s' if num_steps > 1 else ''}"
