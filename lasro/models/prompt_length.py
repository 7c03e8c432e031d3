"""How many tokens a prompt may have, from a tokenizer and the configuration of its text encoder alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lasro.errors import PromptTooLongError


def token_limit(tokenizer: Any, text_config: Any) -> int:
    """Tokens that both take, start and end included.

    A tokenizer that was saved without a limit has 10^30; the text encoder has embeddings for so many positions only.
    """
    return min(tokenizer.model_max_length, text_config.max_position_embeddings)


def limit_tokens(pipeline: Any, tokenizers: Sequence[str], text_encoders: Sequence[str]) -> None:
    """Give each tokenizer of a pipeline its true limit: stock pads prompts up to it."""
    for name, encoder in zip(tokenizers, text_encoders, strict=True):
        tokenizer = getattr(pipeline, name)
        tokenizer.model_max_length = token_limit(tokenizer, getattr(pipeline, encoder).config)


def check_length(prompt: str, tokenizer: Any, limit: int) -> None:
    """Raises PromptTooLongError."""
    count = len(tokenizer(prompt, verbose=False).input_ids)
    if count > limit:
        raise PromptTooLongError(f"prompt {prompt[:60]!r}: got {count} tokens, expected at most {limit}; shorten it")
