"""The folder of a run: its configuration, log, checkpoint, adapter and summary, each written whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lasro.config import RunSettings
from lasro.config.older_defaults import is_older, with_older_defaults
from lasro.errors import ConfigError, StorageError
from lasro.files import storage_errors, write_atomically, write_json
from lasro.training.distributed import DistributedContext
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.process_codec import CpuTensor
from lasro.wire import pack_tensors, unpack_tensors
from lasro_client.run.base_sample_rewards import (
    BASE_REWARDS_FILE,
    OLD_BASE_REWARDS_FILE,
    RoundRewards,
)
from lasro_client.run.kept_settings import (
    Done,
    changed_settings,
    check_changed,
    rewritten,
    rounds_of,
)
from lasro_client.run.pause import pause_files
from lasro_client.run.progress import NO_PARTS, Parts, Progress
from lasro_client.run.round_record import RoundRecord, Stage, read_log, to_json
from lasro_client.run.run_lock import hold_run

Summary = dict[str, Any]
"""The contents of summary.json."""
Tensors = dict[str, CpuTensor]
SURROGATE_FILE = "surrogate.safetensors"
CHECKPOINT_FILE = "checkpoint/state.safetensors"
BEST, METHOD = "best.", "method."
"""What goes before names of tensors in the checkpoint that are not the trainer's."""


Checkpoint = tuple[Progress, dict[str, Tensor] | None]
"""Where a run continues, and the generator's state when the gain was highest; None before there was a gain."""


class RunFolder:
    """`runs/<name>` of a stage, "pretrain" or "train". Of several processes only the main one needs to see it."""

    def __init__(self, path: Path, config: RunSettings, stage: Stage) -> None:
        self.path, self.config = path, config
        self._stage: Stage = stage

    @contextmanager
    def held(self, peers: DistributedContext) -> Iterator[None]:
        """Keep other runs out of the folder while inside, which is made where there is none.

        Raises ConflictError, naming the process, where a run goes on in it.
        """
        with ExitStack() as exits:
            peers.on_main_and_broadcast(lambda: self._hold(exits), None)
            yield

    def _hold(self, exits: ExitStack) -> None:
        if self.path.is_file():
            raise ConfigError(f"{self.path}: is a file, expected a folder or nothing yet")
        exits.enter_context(hold_run(self.path))
        exits.enter_context(pause_files(self.path))

    def go_on_as_begun(self, peers: DistributedContext) -> RunSettings:
        """The run's settings: where an earlier release began it, with the defaults of then. All processes call it."""
        if peers.on_main_and_broadcast(lambda: self._is_older(), bool):
            self.config = with_older_defaults(self.config)
        return self.config

    def _is_older(self) -> bool:
        known = self._begun_with()
        return known is not None and is_older(known)

    def _begun_with(self) -> dict[str, Any] | None:
        """config.json of a run that has rounds."""
        return self._read("config.json") if self._has_rounds() else None

    def result(self) -> Summary | None:
        """The summary of a run that is finished by these settings too; None where there is something left to do.

        Raises ConflictError for settings of another run.
        """
        self._rename_old_base_rewards()
        changed, summary = self._check_settings(), self.summary()
        more = changed and summary is not None and rounds_of(self.config, self._stage) > summary["rounds"]
        return None if more else summary

    def open(self) -> None:
        """Make the folder, or check that the run in it has the same settings; raises ConflictError.

        Settings may change as long as no round is done: a run that failed for a wrong setting is started again. Limits
        may grow later: a finished run then goes on from its last checkpoint.
        """
        self._rename_old_base_rewards()
        changed, path = self._check_settings(), self.path / "config.json"
        if changed:
            with storage_errors(self.path):
                (self.path / "summary.json").unlink(missing_ok=True)
            self._forget_plan()
        if changed or not path.exists():  # last: until then the next start does all of this again
            write_json(path, rewritten(self._begun_with(), self._stage, self.config))

    def _check_settings(self) -> list[str]:
        """What differs from config.json; raises ConflictError for what may not."""
        known = self._read("config.json")
        changed = [] if known is None else changed_settings(known, self._stage, self.config)
        if changed and self._has_rounds():
            check_changed(self.path, self._stage, self.config, changed, self._done())
        return changed

    def _done(self) -> Done:
        summary, rounds = self.summary() or {}, self.rounds()
        if not rounds:
            return Done()
        last = rounds[-1]
        return Done(last.round + 1, last.reward_calls, last.elapsed_s / 60, summary.get("ended"))

    def _forget_plan(self) -> None:
        """The rounds that fit into the minutes were counted for other limits."""
        path = self.path / CHECKPOINT_FILE
        if path.exists():
            arrays, metadata = unpack_tensors(path.read_bytes())
            saved = json.loads(metadata["progress"])
            saved["progress"]["planned"] = None
            write_atomically(path, pack_tensors(arrays, metadata | {"progress": json.dumps(saved)}))

    def _rename_old_base_rewards(self) -> None:
        old, new = self.path / OLD_BASE_REWARDS_FILE, self.path / BASE_REWARDS_FILE
        try:
            if old.exists() and not new.exists():
                old.rename(new)
        except OSError as error:
            raise StorageError(f"{old}: cannot be renamed to {new.name} ({error.strerror}); rename it") from error

    @property
    def has_checkpoint(self) -> bool:
        """Whether a run has begun here."""
        return (self.path / CHECKPOINT_FILE).exists()

    def _has_rounds(self) -> bool:
        return any((self.path / name).exists() for name in (CHECKPOINT_FILE, "log.jsonl", "summary.json"))

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise ConfigError(f"{self.path}: is a file, expected a folder or nothing yet") from error
        except (OSError, ValueError) as error:
            raise StorageError(f"{self.path / name}: cannot be read ({error})") from error

    def summary(self) -> Summary | None:
        """Of a finished run; None where it is not finished."""
        return self._read("summary.json")

    def rounds(self) -> list[RoundRecord]:
        """The rounds that are done, in order."""
        return read_log(self.path / "log.jsonl")

    def finish(self, summary: Summary) -> None:
        write_json(self.path / "summary.json", summary)

    def log(self, record: RoundRecord) -> None:
        """Append a round to log.jsonl."""
        self._append("log.jsonl", to_json(record))

    def add_base_rewards(self, rewards: RoundRewards) -> None:
        """Append a round to base_rewards.jsonl."""
        self._append(BASE_REWARDS_FILE, rewards.model_dump_json(exclude_none=True))

    def _append(self, name: str, line: str) -> None:
        try:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise StorageError(f"{self.path / name}: {error.strerror}; free the disk and resume") from error

    def keep_surrogate(self, weights: bytes) -> None:
        """Write the trained weights in float16: half the size, and the ranking stays the same."""
        tensors, metadata = unpack_tensors(weights)
        halved = {name: array.astype(np.float16) for name, array in tensors.items()}
        write_atomically(self.path / SURROGATE_FILE, pack_tensors(halved, metadata))

    def start(self, trainer: GeneratorTrainer, parts: Parts = NO_PARTS) -> Checkpoint:
        """Where to continue: round 0, or the checkpoint, whose state is loaded into `trainer` and `parts`.

        The main process reads the checkpoint and sends it to the others.
        """
        peers = trainer.peers
        progress, best = peers.on_main_and_broadcast(
            lambda: self._read_checkpoint(trainer, parts), tuple[Progress, Tensors | None]
        )
        if peers.count > 1 and progress.surrogate_version is not None:
            state = peers.on_main_and_broadcast(trainer.state, Tensors)
            version, method, trainer.seed, trainer.first_version = peers.on_main_and_broadcast(
                lambda: (trainer.version, trainer.method.state(), trainer.seed, trainer.first_version),
                tuple[int, dict[str, Any], int, int],
            )
            trainer.load_state(state, version, method)
            trainer.method.load_tensors(peers.on_main_and_broadcast(trainer.method.tensors, Tensors))
            for part in parts.values():
                part.load(peers.on_main_and_broadcast(part.state, dict[str, Any]))
        return progress, best

    def _read_checkpoint(self, trainer: GeneratorTrainer, parts: Parts) -> Checkpoint:
        path = self.path / CHECKPOINT_FILE
        if not self.has_checkpoint:
            self._drop_rounds_after(0)
            return Progress(), None
        arrays, metadata = unpack_tensors(path.read_bytes())
        saved = json.loads(metadata["progress"])
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        of_method, best = (_take(tensors, prefix) for prefix in (METHOD, BEST))
        method = saved.get("method") or {"moments": saved["moments"]}  # as 0.1 wrote it, which knew LaSRO alone
        trainer.load_state(tensors, saved["version"], method)
        trainer.method.load_tensors(of_method)
        trainer.seed, trainer.first_version = saved["seed"], saved.get("first_version", 0)
        for name, part in parts.items():
            if saved.get(name) is not None:  # a release before the part was there kept none
                part.load(saved[name])
        progress = Progress(**saved["progress"])
        self._drop_rounds_after(progress.round)
        return progress, best or None

    def _drop_rounds_after(self, round: int) -> None:
        for path in (self.path / "log.jsonl", self.path / BASE_REWARDS_FILE):
            if path.exists():
                lines = path.read_bytes().splitlines()[:round]
                write_atomically(path, b"".join(line + b"\n" for line in lines))

    def checkpoint(
        self,
        progress: Progress,
        trainer: GeneratorTrainer,
        parts: Parts = NO_PARTS,
        best: dict[str, Tensor] | None = None,
    ) -> None:
        """Write all that a resume needs, in one file that is replaced as a whole. Only the main process writes."""
        if not trainer.peers.is_main:
            return
        saved = {"progress": progress._asdict(), "version": trainer.version, "seed": trainer.seed}
        saved |= {"first_version": trainer.first_version, "method": trainer.method.state()}
        saved |= {name: part.state() for name, part in parts.items()}
        tensors = trainer.state()
        for prefix, others in ((BEST, best or {}), (METHOD, trainer.method.tensors())):
            tensors |= {prefix + name: tensor for name, tensor in others.items()}
        body = pack_tensors({n: t.numpy() for n, t in tensors.items()}, {"progress": json.dumps(saved)})
        write_atomically(self.path / CHECKPOINT_FILE, body)

    def export(self, trainer: GeneratorTrainer, name: str = "adapter") -> None:
        """Write the averaged adapter for stock diffusers, in place of the last one. Only the main process writes."""
        if not trainer.peers.is_main:
            return
        fresh, final = self.path / f".{name}", self.path / name
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            trainer.save(fresh)
            shutil.rmtree(final, ignore_errors=True)
            fresh.rename(final)
        except OSError as error:
            raise StorageError(f"{final}: cannot be written ({error.strerror}); free the disk and resume") from error


def _take(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names have this prefix, without it, out of `tensors`."""
    return {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
