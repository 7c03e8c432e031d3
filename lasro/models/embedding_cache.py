"""Prompts' embeddings, kept: a run asks for the same prompts over and over.

Shape legend: B prompts.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lasro.models.base import Conditioning
from lasro.models.device import device_memory

SIZE = 2048
MEMORY_ADVICE = 'set model.dtype = "bfloat16", or free memory on the device'


class EmbeddingCache:
    """The last 2048 prompts that were asked for; those of the base apart from those of an adapted text encoder."""

    def __init__(self) -> None:
        self._rows: OrderedDict[tuple[str, bool], dict[str, Tensor]] = OrderedDict()

    def conditioning(
        self, prompts: Sequence[str], of_base: bool, embed_prompt: Callable[[str], dict[str, Tensor]]
    ) -> Conditioning:
        """Of B prompts; what is not kept is embedded, one prompt at a time, so that no row depends on the others."""
        for prompt in dict.fromkeys(prompts):
            if (prompt, of_base) not in self._rows:
                with device_memory("embedding a prompt", MEMORY_ADVICE):
                    self._rows[prompt, of_base] = embed_prompt(prompt)
        rows = [self._rows[prompt, of_base] for prompt in prompts]
        for prompt in prompts:
            self._rows.move_to_end((prompt, of_base))
        while len(self._rows) > SIZE:
            self._rows.popitem(last=False)
        return Conditioning({name: torch.stack([row[name] for row in rows]) for name in rows[0]})

    def clear(self) -> None:
        """Forget all, where a text encoder has changed."""
        self._rows.clear()
