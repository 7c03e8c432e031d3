"""What happened to a run, on disk: `commits/N.json`, `groups/N.msgpack` and `optimiser/N.safetensors`.

Commit N is written last, after the groups that entered the replay with it and the weights that it published: it makes
them count. What bears a higher number than the newest commit never happened. Groups lie as they came, in files that
are never rewritten; the optimiser's state is written only now and then, and what commits after it did is repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from lasro import wire
from lasro_surrogate_trainer.store import numbered, storage_errors, write_whole

Kind = Literal["commits", "groups", "optimiser"]
SUFFIXES: dict[Kind, str] = {"commits": "json", "groups": "msgpack", "optimiser": "safetensors"}


class Measured(wire.Message):
    """What the trainer knows of its surrogate besides the weights; null where there was nothing to measure yet."""

    held_out_accuracy: wire.Finite | None = None
    held_out_step: int | None = None
    reward_gap: wire.Finite | None = None


class Commit(wire.Message):
    """One change of a run: its beginning, an upload of weights (without `request_id`), or an adaptation."""

    number: int
    version: int
    steps: int = Field(description="optimiser steps behind the version")
    groups: list[wire.Name] = Field(default=[], description="that entered the replay")
    request_id: wire.Name | None = None
    digest: str | None = Field(default=None, description="of the adapt request, or of the uploaded weights")
    policy_version: int = Field(default=0, description="updates of the generator that made the newest group")
    drift: wire.Finite | None = Field(default=None, description="of that generator, as its client told")
    reply: wire.AdaptReply | None = None
    measured: Measured = Measured()


class _Groups(wire.Message):
    samples: list[wire.ScoredGroup]


class Journal:
    """In the folder of one run. Every method may raise StorageError, reading ones WireError for a damaged file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, kind: Kind, number: int) -> Path:
        return self._folder / kind / f"{number:08d}.{SUFFIXES[kind]}"

    def _read(self, kind: Kind, number: int) -> bytes:
        path = self._path(kind, number)
        with storage_errors(path):
            return path.read_bytes()

    def numbers(self, kind: Kind) -> list[int]:
        """Of the commits that have a file of this kind, in order."""
        return numbered(self._folder / kind)

    def remove(self, kind: Kind, numbers: Iterable[int]) -> None:
        """Forget these files."""
        for path in [self._path(kind, number) for number in numbers]:
            with storage_errors(path):
                path.unlink(missing_ok=True)

    def drop_after(self, number: int) -> None:
        """Remove what was written for commits that never came."""
        for kind in ("groups", "optimiser"):
            self.remove(kind, [later for later in self.numbers(kind) if later > number])

    def commits(self) -> list[Commit]:
        """Those kept, oldest first; empty for a new run."""
        return [wire.from_json(Commit, self._read("commits", number)) for number in self.numbers("commits")]

    def commit(self, commit: Commit) -> None:
        """Make it count."""
        write_whole(self._path("commits", commit.number), commit.model_dump_json().encode())

    def groups(self, number: int) -> list[wire.ScoredGroup]:
        """What entered the replay with a commit, as it came."""
        return wire.from_msgpack(_Groups, self._read("groups", number)).samples

    def add_groups(self, number: int, samples: Sequence[wire.ScoredGroup]) -> None:
        """Write the groups of the commit that follows."""
        if samples:
            write_whole(self._path("groups", number), wire.to_msgpack(_Groups(samples=list(samples))))

    def optimiser(self) -> tuple[int, dict[str, np.ndarray]]:
        """The number of the newest commit whose optimiser was saved, and that state."""
        number = self.numbers("optimiser")[-1]
        return number, wire.unpack_tensors(self._read("optimiser", number))[0]

    def save_optimiser(self, number: int, tensors: Mapping[str, np.ndarray]) -> None:
        """Write the optimiser's state as of a commit."""
        write_whole(self._path("optimiser", number), wire.pack_tensors(tensors))
