"""The folder of a run: its configuration, log, checkpoint, adapter and summary, each written whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError

from lasro.config import RunSettings, differing_keys
from lasro.errors import ConfigError, ConflictError, StorageError
from lasro.objective import Moments
from lasro.wire import pack_tensors, unpack_tensors
from lasro_client.files import write_atomically, write_json
from lasro_client.generator import GeneratorTrainer
from lasro_client.labels import LABELS_FILE, RoundLabels

KEPT_OUT = {"services"}
"""Settings that may differ when a run is resumed: where the services are."""


class Progress(NamedTuple):
    """How far a run has come. `attempt` counts the times it was started; it keeps ids of redone rounds apart."""

    round: int
    attempt: int
    elapsed_s: float
    reward_calls: int


class RunFolder:
    """`runs/<name>`; made when new, checked against `config` when it exists."""

    def __init__(self, path: Path, config: RunSettings, stage: str) -> None:
        self.path, self.config = path, config
        settings = {"stage": stage} | config.model_dump(mode="json", exclude=KEPT_OUT)
        known = self._read("config.json")
        if known is None:
            write_json(path / "config.json", settings)
        elif keys := differing_keys(_completed(known), settings):
            raise ConflictError(
                f"{path}: made with another configuration, differing in {', '.join(keys)}; "
                "change these back to resume it, or choose another folder with --out"
            )

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

    def label(self, labels: RoundLabels) -> None:
        """Append a round to labels.jsonl."""
        self._append(LABELS_FILE, labels.model_dump_json())

    def _append(self, name: str, line: str) -> None:
        try:
            with (self.path / name).open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise StorageError(f"{self.path / name}: {error.strerror}; free the disk and resume") from error

    def start(self, trainer: GeneratorTrainer | None = None) -> Progress:
        """Where to go on: round 0, or the checkpoint, whose state `trainer` takes over. Counts the attempt."""
        path = self.path / "checkpoint" / "state.safetensors"
        progress = Progress(0, 0, 0.0, 0)
        if path.exists():
            tensors, metadata = unpack_tensors(path.read_bytes())
            saved = json.loads(metadata["progress"])
            progress = Progress(**saved["progress"])
            if trainer is not None:
                moments = [None if pair is None else Moments(*pair) for pair in saved["moments"]]
                trainer.load_state({n: torch.from_numpy(a) for n, a in tensors.items()}, saved["version"], moments)
                trainer.seed = saved["seed"]
        for name in ("log.jsonl", LABELS_FILE):
            self._drop_lines_after(progress.round, name)
        attempt = (self._read("attempt.json") or 0) + 1
        write_json(self.path / "attempt.json", attempt)
        return progress._replace(attempt=attempt)

    def _drop_lines_after(self, round: int, name: str) -> None:
        path = self.path / name
        if path.exists():
            lines = path.read_bytes().splitlines()[:round]
            write_atomically(path, b"".join(line + b"\n" for line in lines))

    def checkpoint(self, progress: Progress, trainer: GeneratorTrainer | None = None) -> None:
        """All that a resume needs, in one file that is either the old or the new one."""
        saved: dict[str, Any] = {"progress": progress._asdict()}
        tensors = {}
        if trainer is not None:
            saved |= {"version": trainer.version, "seed": trainer.seed, "moments": trainer.moments}
            tensors = {name: tensor.numpy() for name, tensor in trainer.state().items()}
        body = pack_tensors(tensors, {"progress": json.dumps(saved)})
        write_atomically(self.path / "checkpoint" / "state.safetensors", body)

    def export(self, trainer: GeneratorTrainer) -> None:
        """Write the averaged adapter for stock diffusers; the folder is replaced as a whole."""
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
    return {"stage": known.get("stage")} | settings.model_dump(mode="json", exclude=KEPT_OUT)
