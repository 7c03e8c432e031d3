"""Prompts that a pipeline puts into a text of its own before they are tokenised: an instruction, a chat's template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Tokenised(NamedTuple):
    """Token ids of some prompts."""

    input_ids: list[list[int]]


class RenderedPrompts:
    """Stands for a tokenizer where tokens are counted (`PromptTokens`)."""

    def __init__(self, tokenizer: Any, render: Callable[[str], str], limit: int, uncounted: int = 0) -> None:
        """`limit`: tokens of a rendered prompt, without the first `uncounted` ones, which are the same for all."""
        self.model_max_length = limit
        self._tokenizer, self._render, self._uncounted = tokenizer, render, uncounted

    def __call__(self, prompts: Sequence[str], **options: Any) -> Tokenised:
        ids = self._tokenizer([self._render(prompt) for prompt in prompts], **options).input_ids
        return Tokenised([tokens[self._uncounted :] for tokens in ids])


def chat(tokenizer: Any, enable_thinking: bool) -> Callable[[str], str]:
    """A prompt as the message of a user, by the tokenizer's template."""

    def render(prompt: str) -> str:
        message = {"role": "user", "content": prompt}
        return tokenizer.apply_chat_template(
            [message], tokenize=False, add_generation_prompt=True, enable_thinking=enable_thinking
        )

    return render
