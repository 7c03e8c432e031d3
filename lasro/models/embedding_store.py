"""Embeddings of prompts on disk, each in a file that is named by the digest of what it was computed from.

Any number of processes may share the folder. A file appears whole, by a rename, and is never changed. It begins with
the digest of the rest: one that a power cut or a bad disk broke is removed and computed again. Nothing is synced to
the disk, since nothing here is the only copy. The entries read longest ago go first once there are too many bytes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from lasro.cache_folder import FOLDER_VARIABLE, cache_folder

log = logging.getLogger("lasro")
DIGEST_BYTES = 32
KEPT_SHARE = 0.9
"""Of the bytes that there may be, what is left once entries are removed: not each write has to look for more."""
TOUCH_S = 3600.0
"""An entry that is read is noted as used where that was not noted for so long."""
LEFTOVER_S = 3600.0
"""Age of a temporary file whose process must have been killed."""


class EmbeddingStore:
    """The entries in one folder. What the disk refuses is an entry that is not there, and said once."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._total: int | None = None
        """Bytes in the folder as far as this process knows; None: not counted yet."""
        self._refused = False

    def has(self, key: str) -> bool:
        """Whether there is an entry, whole or not; `key` is a hexadecimal digest."""
        return self._path(key).exists()

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The tensors of an entry, on the CPU; None where there is none, or a broken one, which is removed."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        tensors = _unpacked(content)
        if tensors is None:
            log.warning("%s: is broken, and computed again", path)
            _remove(path)
            return None
        _note_use(path)
        return tensors

    def put(self, key: str, tensors: dict[str, Tensor]) -> bool:
        """Keep tensors of the CPU; False where the disk takes nothing, or they are too many for the folder."""
        body = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
        if self._refused or len(body) > self.max_bytes * KEPT_SHARE:
            return False
        path = self._path(key)
        temporary = path.with_name(f".{key}.{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(hashlib.sha256(body).digest() + body)
            temporary.replace(path)
            self._make_room(DIGEST_BYTES + len(body))
        except OSError as error:
            self._refused = True
            _remove(temporary)
            log.warning("%s: %s; prompts are embedded anew each time, see %s", path, error.strerror, FOLDER_VARIABLE)
            return False
        return True

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def _make_room(self, added: int) -> None:
        if self._total is not None and self._total + added <= self.max_bytes:
            self._total += added
            return
        entries = sorted(self._entries())  # others write too, so all are counted
        self._total = sum(size for _, size, _ in entries)
        if self._total <= self.max_bytes:
            return
        for _, size, path in entries:
            if self._total <= self.max_bytes * KEPT_SHARE:
                break
            _remove(path)
            self._total -= size

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Time of last use, bytes and path of each; what killed processes left behind is removed."""
        now = time.time()
        for path in self.folder.glob("*/*"):
            try:
                found = path.stat()
            except OSError:  # another process removed it
                continue
            if not path.name.startswith("."):
                yield found.st_mtime, found.st_size, path
            elif now - found.st_mtime > LEFTOVER_S:
                _remove(path)


def open_store() -> EmbeddingStore | None:
    """That of the user's cache folder; None where there is to be none. Raises ConfigError."""
    found = cache_folder()
    return None if found is None else EmbeddingStore(found.path / "embeddings", found.max_bytes)


def _unpacked(content: bytes) -> dict[str, Tensor] | None:
    digest, body = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        return None
    try:
        return safetensors.torch.load(body)
    except SafetensorError:
        return None


def _note_use(path: Path) -> None:
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > TOUCH_S:
            os.utime(path)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)
