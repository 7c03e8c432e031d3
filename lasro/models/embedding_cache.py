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

MOST_BYTES = 1 << 30
"""Of all that is kept; a prompt of FLUX.2-klein has 8 MB in bfloat16, one of SDXL 0.6 MB in float32."""
MEMORY_ADVICE = 'set model.dtype = "bfloat16", or free memory on the device'


class EmbeddingCache:
    """The last prompts that were asked for, up to 1 GiB; those of the base apart from those of adapted encoders."""

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
        size = sum(tensor.nbytes for row in self._rows.values() for tensor in row.values())
        while size > MOST_BYTES:
            _, oldest = self._rows.popitem(last=False)
            size -= sum(tensor.nbytes for tensor in oldest.values())
        return Conditioning({name: torch.stack([row[name] for row in rows]) for name in rows[0]})

    def clear(self) -> None:
        """Forget all, where a text encoder has changed."""
        self._rows.clear()
