"""A whole diffusers folder of model and adapter in one."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from lasro.config import ModelSettings
from lasro.errors import ConflictError, StorageError
from lasro.models.base import AdapterKeys
from lasro_client.evaluation.adapted_model import load_adapted


def export(settings: ModelSettings, adapter: Path, out: Path, partial: bool = False) -> AdapterKeys | None:
    """Fuse `adapter` into the networks and write the pipeline to `out`, whole or not at all.

    `partial` and what is returned are those of `GeneratorModel.load_lora`. Raises ConflictError where `out` exists,
    ModelError, StorageError.
    """
    if out.exists():
        raise ConflictError(f"{out}: exists already, expected a new folder; choose another or delete it")
    model, keys = load_adapted(settings, adapter, partial)
    temporary: str | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.")
        model.save_fused(Path(temporary))
        Path(temporary).chmod(0o755)  # mkdtemp makes folders that only their owner can read
        Path(temporary).rename(out)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror or error}); free the disk") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return keys
