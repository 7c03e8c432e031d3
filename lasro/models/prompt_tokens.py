"""How many tokens a prompt has by each tokenizer of a model, and how many it may have. Needs no weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lasro.errors import ModelError, PromptTooLongError

BATCH = 4096


class TooLong(NamedTuple):
    """A prompt over the limit: its place among those asked about, its tokens with those that begin and end it."""

    place: int
    tokens: int
    limit: int


def token_limit(tokenizer: Any, text_config: Any) -> int:
    """What both take. The tokenizer of some models names no limit of its own, that is one of 10^30 tokens."""
    return min(tokenizer.model_max_length, text_config.max_position_embeddings)


def check_tokenizer(tokenizer: Any, text_config: Any, where: str) -> None:
    """Raises ModelError for one that turns every prompt into the same, or into tokens that its encoder lacks."""
    size, rows = len(tokenizer), text_config.vocab_size
    if size <= len(tokenizer.all_special_ids):
        raise ModelError(f"{where}: holds no vocabulary; expected tokenizer.json, or vocab.json and merges.txt")
    if size > rows:
        raise ModelError(
            f"{where}: got {size} tokens, expected at most the {rows} of its text encoder; it is another's"
        )


class PromptTokens:
    """The tokenizers of a model, each with the configuration of the text encoder that it is for."""

    def __init__(self, tokenizers: Sequence[tuple[Any, Any]]) -> None:
        self._tokenizers = tokenizers

    def too_long(self, prompts: Sequence[str]) -> list[TooLong]:
        """The prompts that are over the limit of one of the tokenizers, in order."""
        found: dict[int, TooLong] = {}
        for tokenizer, text_config in self._tokenizers:
            limit = token_limit(tokenizer, text_config)
            for start in range(0, len(prompts), BATCH):
                ids = tokenizer(list(prompts[start : start + BATCH]), verbose=False).input_ids
                over = ((start + i, len(tokens)) for i, tokens in enumerate(ids) if len(tokens) > limit)
                found |= {place: TooLong(place, count, limit) for place, count in over}
        return [found[place] for place in sorted(found)]

    def check(self, prompts: Sequence[str]) -> None:
        """Raises PromptTooLongError for the first prompt that is too long."""
        for place, tokens, limit in self.too_long(prompts)[:1]:
            raise PromptTooLongError(
                f"prompt {prompts[place][:60]!r}: got {tokens} tokens, expected at most {limit}; shorten it"
            )


def limit_tokens(pipeline: Any, tokenizers: Sequence[str], text_encoders: Sequence[str], where: str) -> PromptTokens:
    """Of a pipeline's parts; gives the tokenizers their true limits, to which stock pads each prompt."""
    pairs = []
    for name, encoder in zip(tokenizers, text_encoders, strict=True):
        tokenizer, text_config = getattr(pipeline, name), getattr(pipeline, encoder).config
        check_tokenizer(tokenizer, text_config, f"{where}: {name}")
        tokenizer.model_max_length = token_limit(tokenizer, text_config)
        pairs.append((tokenizer, text_config))
    return PromptTokens(pairs)
