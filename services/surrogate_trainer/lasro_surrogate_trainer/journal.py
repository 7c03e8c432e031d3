"""The journal of a run on disk: `commits/N.json`, `groups/N.msgpack` and `optimiser/N.safetensors`.

Commit N is written last, after the groups that it added to the replay buffer and the weights that it published. Files
with a higher number than the newest commit are leftovers and are removed. Groups are stored as they arrived, in files
that are never rewritten. The optimiser's state is saved only now and then; the steps since are repeated on a restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from lasro import wire
from lasro.training.surrogate_trainer import SurrogateMetrics
from lasro_surrogate_trainer.store import numbered, storage_errors, write_file

Kind = Literal["commits", "groups", "optimiser"]
SUFFIXES: dict[Kind, str] = {"commits": "json", "groups": "msgpack", "optimiser": "safetensors"}


class Commit(wire.Message):
    """One change of a run: its creation, an upload of weights (without `request_id`), or an adaptation."""

    number: int
    version: int
    steps: int = Field(description="optimiser steps behind the version")
    groups: list[wire.Name] = Field(default=[], description="groups added to the replay buffer")
    request_id: wire.Name | None = None
    rate: float = Field(default=1.0, description="share of the learning rate that its steps took")
    settle: bool = Field(default=False, description="whether the rate fell over its steps, drawn from all groups alike")
    digest: str | None = Field(default=None, description="of the adapt request, or of the uploaded weights")
    policy_version: int = Field(default=0, description="updates of the generator that made the newest group")
    drift: wire.Finite | None = Field(default=None, description="of that generator, as its client measured it")
    reply: wire.AdaptReply | None = None
    measured: SurrogateMetrics = SurrogateMetrics()


class _Groups(wire.Message):
    samples: list[wire.ScoredGroup]


class Journal:
    """In the folder of one run. Every method may raise StorageError; those that read, WireError for a damaged file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, kind: Kind, number: int) -> Path:
        return self._folder / kind / f"{number:08d}.{SUFFIXES[kind]}"

    def _read(self, kind: Kind, number: int) -> bytes:
        path = self._path(kind, number)
        with storage_errors(path):
            return path.read_bytes()

    def numbers(self, kind: Kind) -> list[int]:
        """Numbers of the commits that have a file of this kind, in order."""
        return numbered(self._folder / kind)

    def remove(self, kind: Kind, numbers: Iterable[int]) -> None:
        """Remove the files of this kind and these numbers."""
        for path in [self._path(kind, number) for number in numbers]:
            with storage_errors(path):
                path.unlink(missing_ok=True)

    def drop_after(self, number: int) -> None:
        """Remove what was written for commits that were never finished."""
        for kind in ("groups", "optimiser"):
            self.remove(kind, [later for later in self.numbers(kind) if later > number])

    def commits(self) -> list[Commit]:
        """The kept commits, oldest first; empty for a new run."""
        return [wire.from_json(Commit, self._read("commits", number)) for number in self.numbers("commits")]

    def commit(self, commit: Commit) -> None:
        """Write a commit: from then on all that was written for it counts."""
        write_file(self._path("commits", commit.number), commit.model_dump_json().encode())

    def groups(self, number: int) -> list[wire.ScoredGroup]:
        """The groups that a commit added to the replay buffer, as they arrived."""
        return wire.from_msgpack(_Groups, self._read("groups", number)).samples

    def add_groups(self, number: int, samples: Sequence[wire.ScoredGroup]) -> None:
        """Write the groups of a commit that is yet to be written."""
        if samples:
            write_file(self._path("groups", number), wire.to_msgpack(_Groups(samples=list(samples))))

    def optimiser(self) -> tuple[int, dict[str, np.ndarray]]:
        """The number of the newest commit whose optimiser was saved, and that state."""
        number = self.numbers("optimiser")[-1]
        return number, wire.unpack_tensors(self._read("optimiser", number))[0]

    def save_optimiser(self, number: int, tensors: Mapping[str, np.ndarray]) -> None:
        """Write the optimiser's state as of a commit."""
        write_file(self._path("optimiser", number), wire.pack_tensors(tensors))
