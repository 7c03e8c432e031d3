"""Files of a run folder: written whole or not at all, so that a killed run leaves nothing half."""

from __future__ import annotations

import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lasro.errors import StorageError


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, making its folder; raises StorageError, the old file then left as it was."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read; a run folder is meant to be shared.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise StorageError(f"{path}: cannot be written ({error.strerror}); free the disk or choose another") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity are refused with ValueError."""
    write_atomically(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def png_bytes(image_HWC: np.ndarray) -> bytes:
    """`image_HWC` (uint8, RGB) as PNG: lossless, so that the same pixels get the same reward."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
