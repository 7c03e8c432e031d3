"""The prompts that a run took from data sets, kept in its folder: it resumes with the same ones, without the hub.

`prompts/train.jsonl` has the prompts, and `prompts/datasets.json` what was read: data set, commit, licence, counts.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from lasro.config import DatasetSettings, ModelSettings
from lasro.errors import ConflictError, StorageError
from lasro.files import write_atomically, write_json
from lasro.training.dataset_prompts import DatasetRecord
from lasro.training.prompt_checks import fitting
from lasro.training.prompts import Prompt, PromptFile, read_prompt_file, read_prompt_source

FOLDER = "prompts"
RECORDS = "datasets.json"


class FrozenPrompts(NamedTuple):
    """What one process of a run tells another of a data set."""

    prompts: list[tuple[str, Any]]
    record: DatasetRecord

    def as_file(self, folder: Path, role: str) -> PromptFile:
        """The prompts as those of the file that holds them."""
        lines = list(range(1, len(self.prompts) + 1))
        return PromptFile(_file(folder, role), [Prompt(*each) for each in self.prompts], lines, self.record)


def freeze(folder: Path, role: str, settings: DatasetSettings, model: ModelSettings) -> FrozenPrompts:
    """The prompts that the run in `folder` has kept as its `role` (train, held_out or drift), read and kept where it
    has none yet, or none by these settings and for this model.

    Raises ConfigError for a data set that cannot be read, ConflictError where the file that was kept has changed.
    """
    kept = _records(folder).get(role)
    if kept is None or not _is_same(kept, settings, model):
        _keep(folder, role, settings, model)
        kept = _records(folder)[role]
    return FrozenPrompts(_read(folder, role, kept["sha256"]), DatasetRecord(**kept["read"]))


def _keep(folder: Path, role: str, settings: DatasetSettings, model: ModelSettings) -> None:
    found = read_prompt_source(settings, fits=fitting(model))
    assert found.record is not None, "it is a data set"
    body = b"".join(_line(prompt) for prompt in found.prompts)
    write_atomically(_file(folder, role), body)
    kept: dict[str, Any] = {"settings": settings.model_dump(mode="json"), "model": model.path}
    kept |= {"sha256": hashlib.sha256(body).hexdigest(), "read": found.record._asdict()}
    write_json(folder / FOLDER / RECORDS, _records(folder) | {role: kept})


def _line(prompt: Prompt) -> bytes:
    item = {"prompt": prompt.text} | ({} if prompt.metadata is None else {"metadata": prompt.metadata})
    return json.dumps(item, ensure_ascii=False).encode() + b"\n"


def _is_same(kept: dict[str, Any], settings: DatasetSettings, model: ModelSettings) -> bool:
    """Whether the settings are those that it was kept by, completed by those that came to be since."""
    try:
        return DatasetSettings.model_validate(kept["settings"]) == settings and kept["model"] == model.path
    except ValidationError:
        return False


def _read(folder: Path, role: str, sha256: str) -> list[tuple[str, Any]]:
    path = _file(folder, role)
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ConflictError(
            f"{path}: is not what the run in {folder} took from its data set; bring that back, or delete "
            f"{folder / FOLDER / RECORDS} to read the data set again"
        )
    return [(prompt.text, prompt.metadata) for prompt in read_prompt_file(path).prompts]


def _records(folder: Path) -> dict[str, Any]:
    path = folder / FOLDER / RECORDS
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StorageError(f"{path}: cannot be read ({error}); delete it to read the data set again") from error


def _file(folder: Path, role: str) -> Path:
    return folder / FOLDER / f"{role}.jsonl"
