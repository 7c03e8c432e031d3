"""How far a run has come, and the parts of it that are kept with that in its checkpoint. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol


class Progress(NamedTuple):
    """How far a run has come. `surrogate_version`: of its last round, None before it joined the trainer.

    `ended`: why it ended before its last round, None where it did not. `planned`: how many rounds fit into
    `budget.max_minutes`, None while that is not known or where there is no such limit. `unranked`: how many rounds
    before it, in a row, gave no ranked pair. `distance`: sqrt(L_reg) of the generator's last update. `nothing_learned`:
    it ended before the first of them, as there was nothing to learn.
    """

    round: int = 0
    elapsed_s: float = 0.0
    reward_calls: int = 0
    surrogate_version: int | None = None
    ended: str | None = None
    planned: int | None = None
    unranked: int = 0
    distance: float | None = None
    nothing_learned: bool = False


class Remembers(Protocol):
    """A part of a run that is kept with its checkpoint."""

    def state(self) -> dict[str, Any]:
        """All that it knows, for JSON."""
        ...

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state()`."""
        ...


Parts = Mapping[str, Remembers]
"""By the name under which each is kept."""
NO_PARTS: Parts = {}
