"""The text encoders of a pipeline: read when a prompt has to be embedded, and let go when none is left.

Between, networks of the same names and shapes stand in for them on the meta device, without memory.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from torch import nn

from lasro.cache_folder import cache_folder
from lasro.config import ModelSettings
from lasro.errors import StorageError
from lasro.files import write_atomically
from lasro.models.adapter import Adapter, values_digest
from lasro.models.device import move_pipeline
from lasro.models.load_pipeline import encoder_files, load_text_encoders
from lasro.models.loading import loading

EMBEDDINGS = 1
"""Counts up when the same encoders and prompt come to give another embedding by our own code."""
IDLE_S = 60.0
"""Encoders that were read for a single prompt are let go once no other came for so long."""


def is_unread(network: nn.Module) -> bool:
    """Whether it stands in for a network whose weights are on disk."""
    return any(parameter.is_meta for parameter in network.parameters())


class TextEncoders:
    """Of one pipeline, in which they stand by `names`. Not thread-safe."""

    def __init__(self, pipeline: Any, names: Sequence[str], settings: ModelSettings, device: torch.device) -> None:
        self._pipeline, self._names, self._settings, self.device = pipeline, names, settings, device
        self._pinned = False
        self._fused = ""
        """Digest of what was added to their weights; empty: nothing."""
        self._used = time.monotonic()

    @property
    def _parts(self) -> dict[str, nn.Module]:
        return {name: getattr(self._pipeline, name) for name in self._names}

    def move_pipeline(self, left: Collection[str] = ()) -> None:
        """The pipeline to the device, but for the parts in `left` and encoders that are not read."""
        unread = [name for name, part in self._parts.items() if is_unread(part)]
        move_pipeline(self._pipeline, self.device, [*unread, *left])

    def load(self) -> None:
        """Read those that are not in memory; raises ModelError for what is missing, broken or not finite."""
        self._used = time.monotonic()
        unread = [name for name, part in self._parts.items() if is_unread(part)]
        if not unread:
            return
        found = load_text_encoders(self._pipeline, unread, self._settings)
        with loading(f"model.path {self._settings.path}"):
            for part in found.values():
                part.requires_grad_(False).eval().to(self.device)
        self._pipeline.register_modules(**found)

    def pin(self) -> None:
        """Read them now and keep them: they are to carry an adapter, which would be lost."""
        self._pinned = True
        self.load()

    def pin_fused(self, adapter: Adapter) -> None:
        """`pin` them for an adapter that will be fused into them, where it has parts for any of them.

        What they embed is then told apart from what they embed without it.
        """
        if parts := {name: adapter.parts[name] for name in self._names if name in adapter.parts}:
            self._fused = values_digest(parts)
            self.pin()

    def release(self) -> None:
        """Free their memory, unless they are pinned."""
        if self._pinned:
            return
        for part in self._parts.values():
            if not is_unread(part):
                part.to("meta")

    def release_idle(self) -> None:
        """`release`, where they were not needed for a while."""
        if time.monotonic() - self._used > IDLE_S:
            self.release()

    def identity(self) -> str:
        """What an embedding depends on but the prompt: weights, configurations, tokenizers, dtype, and who computes.

        Not on the number of threads, with which the last bit of a float32 sum may change in large encoders.
        """
        files = [file_digest(path) for path in encoder_files(self._pipeline, self._names, self._settings)]
        described = [_configuration(part.config) for part in self._parts.values()]
        parts = sorted(self._pipeline.components.items())
        tokenizers = [_tokenizer(part) for name, part in parts if name.startswith("tokenizer")]
        kind = type(self._pipeline).__name__
        content = [EMBEDDINGS, kind, self._settings.dtype, files, described, tokenizers, _computer(self.device)]
        return _digest([*content, self._fused] if self._fused else content)


def _configuration(config: Any) -> dict[str, Any]:
    """Without what says where it was read, by whom and in which dtype."""
    entries = config.to_dict().items()
    return {key: value for key, value in entries if key[0] != "_" and key not in ("dtype", "transformers_version")}


def _tokenizer(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    return _digest([vocabulary, tokenizer.model_max_length, tokenizer.special_tokens_map])


def _computer(device: torch.device) -> list[str]:
    """Whose arithmetic it is: other libraries, processors and GPUs may round otherwise."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    versions = [torch.__version__, transformers.__version__, diffusers.__version__]
    return [*versions, device.type, name, torch.get_float32_matmul_precision()]


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file. That of a large one is kept in the cache folder until the file changes.

    Raises OSError for a file that cannot be read.
    """
    found = path.resolve().stat()
    folder = cache_folder()
    signature = [str(path.resolve()), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    known = None if folder is None else folder.path / "digests" / _digest(signature)
    if known is not None and known.is_file() and len(text := known.read_text(encoding="ascii")) == 64:
        return text
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if known is not None:
        with suppress(StorageError):  # then it is computed again, and the store of embeddings says why
            write_atomically(known, digest.encode())
    return digest
