"""A LoRA that makes few steps of a stock checkpoint, such as LCM-LoRA: fused into the base before anything is trained.

What is trained is another LoRA on top of it, and is written alone: its file's metadata name the base adapter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import hf_hub_download

from lasro.errors import ModelError
from lasro.models.adapter import Adapter, find_adapter, put_on
from lasro.models.adapter_file import ADAPTER_FILE
from lasro.models.adapter_names import ModuleNames
from lasro.models.adapter_notes import note, noted
from lasro.models.files import at_home, looks_local
from lasro.models.loading import loading
from lasro.models.lora import fuse_adapter

METADATA = "lasro_base_adapter"


class BaseAdapter(NamedTuple):
    """A LoRA that is part of the base: what it was called, and its file's content."""

    name: str
    sha256: str


def find_base_adapter(names: ModuleNames, source: str) -> Adapter:
    """The adapter of a file, folder or hub id, for these networks; raises ModelError."""
    with _named():
        return find_adapter(_file_of(source), names, may_be_partial=False)


def fuse_base_adapter(pipeline: Any, adapter: Adapter) -> None:
    """Add it to the weights of a pipeline, whose networks that it is for are in memory; raises ModelError."""
    with _named():
        put_on(pipeline.components, adapter)
        fuse_adapter(pipeline)


def described(adapter: Adapter, source: str) -> BaseAdapter:
    """What is noted of it where something was trained on top: no path, which says nothing elsewhere."""
    with adapter.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return BaseAdapter(source if not Path(source).is_absolute() else adapter.path.name, digest)


@contextmanager
def _named() -> Iterator[None]:
    """Errors begin with the setting."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"model.base_adapter: {error}") from error


def _file_of(source: str) -> Path:
    path = at_home(Path(source))
    if looks_local(source) or path.exists():
        return path
    owner, _, rest = source.partition("/")
    name, _, file = rest.partition("/")
    if not name:
        raise ModelError(f"{source}: no such file or folder; expected one, or a hub id such as owner/name")
    with loading(f"{source}"):
        return Path(hf_hub_download(f"{owner}/{name}", file or ADAPTER_FILE))


def note_base_adapter(file: Path, base: BaseAdapter) -> None:
    """Write into an adapter's metadata on which base adapter it stands."""
    note(file, METADATA, json.dumps(base._asdict()))


def noted_base_adapter(path: Path) -> BaseAdapter | None:
    """What `note_base_adapter` wrote; None for an adapter that stands on the model alone."""
    try:
        return BaseAdapter(**json.loads(noted(path, METADATA) or "null"))
    except (TypeError, ValueError):
        return None  # nothing noted, or somebody else's key
