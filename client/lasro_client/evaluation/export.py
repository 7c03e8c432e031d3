"""A whole diffusers folder of model and adapter in one, and new folders that are there whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lasro.config import ModelSettings
from lasro.config.base import Dtype
from lasro.errors import ConflictError, LasroError, StorageError
from lasro.models.adapter import AdapterKeys
from lasro_client.evaluation.adapted_model import load_adapted


def export(
    settings: ModelSettings,
    adapter: Path,
    out: Path,
    partial: bool = False,
    strength: float = 1.0,
    dtype: Dtype | None = None,
    write_more: Callable[[Path, AdapterKeys | None], None] | None = None,
) -> AdapterKeys | None:
    """Fuse `strength` times `adapter` into the networks and write the pipeline to `out`, whole or not at all.

    `partial` and what is returned are those of `GeneratorModel.load_lora`; `dtype` is that of `save_fused`.
    `write_more` adds to the folder, before it is at `out`. Raises ConflictError where `out` exists, ModelError,
    StorageError.
    """
    check_new(out)
    model, keys = load_adapted(settings, adapter, partial, strength)
    with new_folder(out) as folder:
        model.save_fused(folder, dtype)
        if write_more is not None:
            write_more(folder, keys)
    return keys


def check_new(out: Path) -> None:
    """Raises ConflictError where there is something at `out`."""
    if out.exists():
        raise ConflictError(f"{out}: exists already, expected a new folder; choose another or delete it")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `out` at the end and is deleted where that is not reached.

    Raises ConflictError where there is something at `out`, StorageError for an OSError inside.
    """
    check_new(out)
    temporary: str | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.")
        yield Path(temporary)
        Path(temporary).chmod(0o755)  # mkdtemp makes folders that only their owner can read
        Path(temporary).rename(out)
    except LasroError:  # StorageError is an OSError too
        raise
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror or error}); free the disk") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
