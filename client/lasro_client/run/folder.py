"""The folder of a run: its configuration, log, checkpoint, adapter and summary, each written whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from lasro.config import RunSettings, differing_keys
from lasro.errors import ConfigError, ConflictError, StorageError
from lasro.files import write_atomically, write_json
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.wire import pack_tensors, unpack_tensors
from lasro_client.run.base_sample_rewards import BASE_REWARDS_FILE, RoundRewards
from lasro_client.run.divergence import Health

SURROGATE_FILE = "surrogate.safetensors"
CHECKPOINT_FILE = "checkpoint/state.safetensors"
BEST = "best."
IGNORED_ON_RESUME = {"services"}
"""Settings that may differ when a run is resumed: where the services are."""


class Progress(NamedTuple):
    """How far a run has come, with what version of the surrogate (null: none yet). `ended`: why it goes no further.

    `planned`: how many rounds its minutes are for; null until that is seen, and where it may take any time.
    """

    round: int = 0
    elapsed_s: float = 0.0
    reward_calls: int = 0
    surrogate_version: int | None = None
    ended: str | None = None
    planned: int | None = None


class Checkpoint(NamedTuple):
    """Where a run goes on, and its generator's state when it was best; null before there was a best."""

    progress: Progress
    best: dict[str, Tensor] | None


class RunFolder:
    """`runs/<name>`; made when new, checked against `config` when there is something in it to go on from."""

    def __init__(self, path: Path, config: RunSettings, stage: str) -> None:
        self.path, self.config = path, config
        settings = {"stage": stage} | config.model_dump(mode="json", exclude=IGNORED_ON_RESUME)
        known = self._read("config.json")
        keys = [] if known is None else differing_keys(_completed(known), settings)
        if known is None or (keys and not self._begun()):
            write_json(path / "config.json", settings)
        elif keys:
            raise ConflictError(
                f"{path}: made with another configuration, differing in {', '.join(keys)}; "
                "change these back to resume it, or choose another folder with --out"
            )

    def _begun(self) -> bool:
        """Whether there is anything of a run: one that found no model, say, is begun again with that setting mended."""
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

    def summary(self) -> dict[str, Any] | None:
        """Of a finished run."""
        return self._read("summary.json")

    def finish(self, summary: dict[str, Any]) -> None:
        write_json(self.path / "summary.json", summary)

    def log(self, line: dict[str, Any]) -> None:
        """Append a round to log.jsonl."""
        self._append("log.jsonl", json.dumps(line, allow_nan=False))

    def label(self, labels: RoundRewards) -> None:
        """Append a round to labels.jsonl."""
        self._append(BASE_REWARDS_FILE, labels.model_dump_json())

    def _append(self, name: str, line: str) -> None:
        try:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise StorageError(f"{self.path / name}: {error.strerror}; free the disk and resume") from error

    def keep_surrogate(self, weights: bytes) -> None:
        """Write the trained weights in float16: half the file, and ranking does not change by it."""
        tensors, metadata = unpack_tensors(weights)
        halved = {name: array.astype(np.float16) for name, array in tensors.items()}
        write_atomically(self.path / SURROGATE_FILE, pack_tensors(halved, metadata))

    def start(self, trainer: GeneratorTrainer, health: Health | None = None) -> Checkpoint:
        """Where to go on: round 0, or the checkpoint, whose state `trainer` and `health` take over.

        Of several processes the first reads the folder, which the others need not see.
        """
        peers = trainer.peers
        checkpoint = peers.on_main_and_broadcast(lambda: self._read_checkpoint(trainer, health))
        if peers.count == 1 or checkpoint.progress.surrogate_version is None:
            return checkpoint
        state, version, method, trainer.seed = peers.on_main_and_broadcast(
            lambda: (trainer.state(), trainer.version, trainer.method.state(), trainer.seed)
        )
        trainer.load_state(state, version, method)
        if health is not None:
            health.load(peers.on_main_and_broadcast(health.state))
        return checkpoint

    def _read_checkpoint(self, trainer: GeneratorTrainer, health: Health | None) -> Checkpoint:
        path = self.path / CHECKPOINT_FILE
        if not path.exists():
            self._drop_rounds_after(0)
            return Checkpoint(Progress(), None)
        arrays, metadata = unpack_tensors(path.read_bytes())
        saved = json.loads(metadata["progress"])
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        method = saved.get("method") or {"moments": saved["moments"]}  # as 0.1 wrote it, which knew LaSRO alone
        trainer.load_state({n: t for n, t in tensors.items() if not n.startswith(BEST)}, saved["version"], method)
        trainer.seed = saved["seed"]
        if health is not None:
            health.load(saved["health"])
        progress = Progress(**saved["progress"])
        self._drop_rounds_after(progress.round)
        best = {name.removeprefix(BEST): t for name, t in tensors.items() if name.startswith(BEST)}
        return Checkpoint(progress, best or None)

    def _drop_rounds_after(self, round: int) -> None:
        for path in (self.path / "log.jsonl", self.path / BASE_REWARDS_FILE):
            if path.exists():
                lines = path.read_bytes().splitlines()[:round]
                write_atomically(path, b"".join(line + b"\n" for line in lines))

    def checkpoint(
        self,
        progress: Progress,
        trainer: GeneratorTrainer,
        health: Health | None = None,
        best: dict[str, Tensor] | None = None,
    ) -> None:
        """All that a resume needs, in one file that is either the old or the new one. The first process writes it."""
        if not trainer.peers.is_main:
            return
        saved = {"progress": progress._asdict(), "version": trainer.version, "seed": trainer.seed}
        saved |= {"method": trainer.method.state(), "health": None if health is None else health.state()}
        tensors = trainer.state() | {BEST + name: tensor for name, tensor in (best or {}).items()}
        body = pack_tensors({n: t.numpy() for n, t in tensors.items()}, {"progress": json.dumps(saved)})
        write_atomically(self.path / CHECKPOINT_FILE, body)

    def export(self, trainer: GeneratorTrainer) -> None:
        """Write the averaged adapter for stock diffusers; the folder is replaced as a whole, by the first process."""
        if not trainer.peers.is_main:
            return
        fresh, final = self.path / ".adapter", self.path / "adapter"
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            trainer.save(fresh)
            shutil.rmtree(final, ignore_errors=True)
            fresh.rename(final)
        except OSError as error:
            raise StorageError(f"{final}: cannot be written ({error.strerror}); free the disk and resume") from error


def _completed(known: dict[str, Any]) -> dict[str, Any]:
    """A folder's settings, those that did not exist when it was made at their defaults."""
    try:
        settings = RunSettings.model_validate({key: value for key, value in known.items() if key != "stage"})
    except ValidationError:
        return known
    return {"stage": known.get("stage")} | settings.model_dump(mode="json", exclude=IGNORED_ON_RESUME)
