"""Prompts to conditioning: from what is kept, else by text encoders that are read for it and let go after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from lasro.models.conditioning import Conditioning
from lasro.models.device import device_memory
from lasro.models.embedding_store import EmbeddingStore
from lasro.models.lora import without_adapters
from lasro.models.prompt_embeddings import PromptEmbeddings
from lasro.models.prompt_tokens import PromptTokens
from lasro.models.text_encoders import TextEncoders

MEMORY_ADVICE = 'set model.dtype = "bfloat16", or free memory on the device'


class PromptEncoder:
    """The text encoders of one pipeline, and the embeddings that they made. For any number of threads."""

    def __init__(
        self,
        pipeline: Any,
        encoders: TextEncoders,
        tokens: PromptTokens,
        embed_prompt: Callable[[str], dict[str, Tensor]],
        store: EmbeddingStore | None,
    ) -> None:
        """`embed_prompt` makes one prompt's tensors, without a batch axis, by encoders that are in memory."""
        self._pipeline, self.encoders, self._tokens, self._embed_prompt = pipeline, encoders, tokens, embed_prompt
        self.embeddings = PromptEmbeddings(encoders.device, store, encoders.identity, self._embed_unknown)
        self._adapted = False

    def embed(self, prompts: Sequence[str], base: bool = False) -> Conditioning:
        """As `GeneratorModel.embed`; kept in memory and on disk."""
        with self.embeddings.lock:
            of_base = base and self._adapted
            with torch.no_grad(), without_adapters(self._pipeline) if of_base else nullcontext():
                found = self.embeddings.stacked(prompts, adapted=self._adapted and not base)
            self.encoders.release_idle()
            return found

    def embed_ahead(self, prompts: Sequence[str]) -> None:
        """As `GeneratorModel.embed_ahead`."""
        with self.embeddings.lock:
            if self._adapted:
                return
            with torch.no_grad():
                kept = self.embeddings.keep(prompts)
            if kept:
                self.encoders.release()

    def adapt(self) -> None:
        """Make the encoders ready for an adapter that is to be put on them: read, and kept from now on."""
        with self.embeddings.lock:
            self.encoders.pin()
            self._adapted = True
            self.embeddings.clear()

    def _embed_unknown(self, prompt: str) -> dict[str, Tensor]:
        self._tokens.check([prompt])
        with device_memory("embedding a prompt", MEMORY_ADVICE):
            self.encoders.load()
            return self._embed_prompt(prompt)
