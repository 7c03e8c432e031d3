"""What prompts become, kept: the newest in memory, all of them on disk, and computed where neither has them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lasro.models.conditioning import Conditioning
from lasro.models.embedding_store import EmbeddingStore

Row = dict[str, Tensor]
"""One prompt's tensors, without a batch axis."""
MEMORY_BYTES = 512 << 20
"""Of rows in memory; 800 prompts of an SDXL-class model in float32."""
MEMORY_BYTES_ALONE = 1 << 30
"""Of them where there is no disk; 128 prompts of FLUX.2-klein in bfloat16."""
DISK_SHARE = 0.5
"""Of the folder that one model's prompts may fill beforehand: others are used as well."""


class PromptEmbeddings:
    """Rows by prompt, for any number of threads. Those of adapted text encoders stay in memory: no digest of an
    adapter's values is taken."""

    def __init__(
        self,
        device: torch.device,
        store: EmbeddingStore | None,
        identity: Callable[[], str],
        compute: Callable[[str], Row],
    ) -> None:
        """`identity` names all that a row depends on but the prompt; it may take seconds and is asked for once.

        `compute` makes the row of a prompt, on the device.
        """
        self._device, self._store, self._compute = device, store, compute
        self._identity, self._known_identity = identity, ""
        self.lock = threading.RLock()
        """Held while rows are looked up and computed; by the owner, while it changes what computes them."""
        self._rows: OrderedDict[tuple[str, bool], Row] = OrderedDict()
        self._bytes, self._max_bytes = 0, MEMORY_BYTES_ALONE if store is None else MEMORY_BYTES

    def stacked(self, prompts: Sequence[str], adapted: bool = False) -> Conditioning:
        """Of all prompts, in their order; `adapted`: of text encoders that carry an adapter."""
        with self.lock:
            rows = {prompt: self._row(prompt, adapted) for prompt in dict.fromkeys(prompts)}
        first = next(iter(rows.values()))
        return Conditioning({name: torch.stack([rows[prompt][name] for prompt in prompts]) for name in first})

    def keep(self, prompts: Sequence[str]) -> bool:
        """Compute those that are in neither place; False where there is no room for all, and the rest was left out."""
        with self.lock:
            return self._keep(prompts)

    def _keep(self, prompts: Sequence[str]) -> bool:
        for prompt in dict.fromkeys(prompts):
            if (prompt, False) in self._rows or (self._store is not None and self._store.has(self._key(prompt))):
                continue
            row = self._row(prompt, adapted=False)
            room = self._max_bytes if self._store is None else DISK_SHARE * self._store.max_bytes
            if _size(row) * len(set(prompts)) > room:
                return False
            if self._store is not None and not self._store.has(self._key(prompt)):  # a disk that takes nothing
                return False
        return True

    def clear(self) -> None:
        """Forget the rows in memory."""
        with self.lock:
            self._rows.clear()
            self._bytes = 0

    def _row(self, prompt: str, adapted: bool) -> Row:
        name = prompt, adapted
        row = self._rows.get(name)
        if row is None:
            row = self._rows[name] = self._compute(prompt) if adapted else self._read_or_compute(prompt)
            self._bytes += _size(row)
        self._rows.move_to_end(name)
        while self._bytes > self._max_bytes and len(self._rows) > 1:
            _, oldest = self._rows.popitem(last=False)
            self._bytes -= _size(oldest)
        return row

    def _read_or_compute(self, prompt: str) -> Row:
        if self._store is None:
            return self._compute(prompt)
        row = self._store.get(self._key(prompt))
        if row is not None:
            return {name: tensor.to(self._device) for name, tensor in row.items()}
        row = self._compute(prompt)
        self._store.put(self._key(prompt), {name: tensor.cpu() for name, tensor in row.items()})
        return row

    def _key(self, prompt: str) -> str:
        self._known_identity = self._known_identity or self._identity()
        return hashlib.sha256(json.dumps([self._known_identity, prompt]).encode()).hexdigest()


def _size(row: Row) -> int:
    return sum(tensor.nbytes for tensor in row.values())
