"""A vision-language model as judge behind an OpenAI-compatible POST {base}/chat/completions, one image per call.

The registered URL is the base as OpenAI's clients take it, with its /v1. Written from the request and reply models in
    vllm/entrypoints/openai/chat_completion/protocol.py      vllm-project/vllm 002032ee2b18e1f7bd924ec47b62504ba3866063
    python/sglang/srt/entrypoints/openai/protocol.py         sgl-project/sglang 004c82e07d876f6e4a0ad6e15325706b0f478f1a
    openai/openai.go                                         ollama/ollama fb30760996871fa9460115c753afd2c60d4ab0f7
Of these, Ollama takes images as data URIs only and knows `max_tokens` but not `max_completion_tokens`.

The score is the number that the judge states (text_scores.py says how), mapped from `scale` to [0, 1]:
    mapping = {"model": "Qwen/Qwen3-VL-8B-Instruct", "rubric": "... {prompt} ...", "scale": [0, 10]}
one of several, by a path into the JSON that it answers or by a regular expression:
    mapping = {"model": "...", "rubric": "...", "score": "alignment.score"}
    mapping = {"model": "...", "rubric": "...", "pattern": "Alignment: ([0-9.]+)"}
the value of the word that it states:
    mapping = {"model": "...", "rubric": "...", "words": {"good": 1, "fair": 0.5, "bad": 0}}
or, with `answers`, the mean of their values weighted by the probability of each as the first token:
    mapping = {"model": "...", "answers": {"yes": 1, "no": 0}}
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from lasro.errors import WireError
from lasro_reward_api.protocols.base import Batch, HttpRequest, ItemResult, ProtocolCodec, Rejected, Settings
from lasro_reward_api.protocols.bodies import base64_text, image_type, json_parts
from lasro_reward_api.protocols.options import Json, Options, Text, parsed
from lasro_reward_api.protocols.replies import finite_number, json_object, keys_shown, refuse_error
from lasro_reward_api.protocols.text_scores import Number, Pattern, ScoreReader, ValuePath, Words, check_scale

STATED_RUBRIC = (
    "You judge an image that was made from this prompt:\n\n{prompt}\n\n"
    "Score from {low} to {high} how well the image shows what the prompt asks for: every object, its number, colour, "
    "shape and place. {low} means that nothing of it is there, {high} that all of it is there and correct. "
    "Use the whole range, and fractions where they fit. Answer with the number alone."
)
YES_NO_RUBRIC = (
    "This image was made from this prompt:\n\n{prompt}\n\n"
    "Does it show everything that the prompt asks for, each object with its number, colour, shape and place? "
    "Answer with one word, yes or no."
)
OWN_PARAMETERS = ("model", "messages", "stream", "n", "logprobs", "top_logprobs")
MAX_TOKENS, MAX_TOKENS_OF_TEXT = 16, 1024
LEAST_PROBABILITY = 0.5
SMALL_NUMBER = re.compile(r"(?<![\w.])(?<![A-Za-z]-)\d{1,3}(?!\w|\.\d)", re.ASCII)


class ChatOptions(Options):
    model: Text
    rubric: Text | None = None
    scale: tuple[Number, Number] = Field(default=(0.0, 10.0), strict=False)
    reasoning: bool = False
    """Whether text may come before the score, which then stands alone on the last line or in the last block."""
    score: ValuePath | None = None
    """Path to the score in an answer that is JSON."""
    pattern: Pattern | None = None
    """A regular expression whose one group is the score; all that it matches must agree."""
    words: Words | None = None
    """Words that the judge answers with in place of a number, and their values."""
    answers: Words | None = None
    top_logprobs: int = Field(default=20, ge=1, le=100)
    """Likeliest first tokens asked for with `answers`; lowered where the server says that it gives fewer."""
    parameters: dict[str, Json] = Field(default_factory=dict)
    """More of the request, such as max_tokens, seed or chat_template_kwargs."""

    @model_validator(mode="after")
    def _fits_together(self) -> ChatOptions:
        check_scale(self.scale)
        if own := sorted(set(self.parameters) & set(OWN_PARAMETERS)):
            raise ValueError(f"parameters: got {own}, expected none of {', '.join(OWN_PARAMETERS)}")
        if self.answers is None and "top_logprobs" in self.model_fields_set:
            raise ValueError("top_logprobs: got it without answers, expected both or none")
        for name, others in EXCLUDED.items():
            unused = sorted(others & self.model_fields_set)
            if getattr(self, name) is not None and unused:
                raise ValueError(f"{name}: got {unused} as well, expected one or the other")
        if self.rubric is None and (self.score or self.pattern or not self._is_yes_or_no()):
            raise ValueError("rubric: got nothing, expected a question that the answers fit")
        return self

    def _is_yes_or_no(self) -> bool:
        words = self.answers or self.words
        return words is None or {_plain(word) for word in words} == {"yes", "no"}


EXCLUDED = {
    "answers": {"scale", "reasoning", "score", "pattern", "words"},
    "words": {"scale"},
    "pattern": {"reasoning", "score"},
}
"""Settings that have no effect where another is set."""


def _plain(token: str) -> str:
    return token.strip().casefold()


def check(settings: Settings) -> None:
    parsed(ChatOptions, settings)


def encode(batch: Batch, settings: Settings) -> HttpRequest:
    options = parsed(ChatOptions, settings)
    [prompt], [image] = batch.prompts, batch.images
    content = [
        {"type": "image_url", "image_url": {"url": f"data:{image_type(image)};base64,{base64_text(image)}"}},
        {"type": "text", "text": _question(options, prompt)},
    ]
    body: dict[str, Any] = {"temperature": 0} | options.parameters
    if "max_completion_tokens" not in body:
        is_text = options.reasoning or options.score or options.pattern
        body.setdefault("max_tokens", 1 if options.answers else MAX_TOKENS_OF_TEXT if is_text else MAX_TOKENS)
    if options.answers:
        body |= {"logprobs": True, "top_logprobs": options.top_logprobs}
    body |= {"model": options.model, "messages": [{"role": "user", "content": content}], "stream": False, "n": 1}
    return json_parts(body, "/chat/completions")


def _question(options: ChatOptions, prompt: str) -> str:
    low, high = options.scale
    values = {"{prompt}": prompt, "{low}": f"{low:g}", "{high}": f"{high:g}"}
    rubric = options.rubric or (YES_NO_RUBRIC if options.answers or options.words else STATED_RUBRIC)
    # In one pass, so that a prompt with {high} in it stays as it is.
    return re.sub(r"\{(?:prompt|low|high)\}", lambda found: values[found[0]], rubric)


def decode(content_type: str, body: bytes, count: int, settings: Settings) -> list[ItemResult]:
    options = parsed(ChatOptions, settings)
    choice, message = _only_choice(json_object(content_type, body))
    text, refusal = _parts(message)
    if refusal:
        return [Rejected(f"the judge refuses: {refusal}"[:500])]
    if choice.get("finish_reason") == "content_filter":
        return [Rejected("the judge's content filter stopped the answer")]
    if options.answers is not None:
        return [_expected(_first_logprobs(choice), options.answers)]
    reason = choice.get("finish_reason")
    if reason != "stop":
        # Cut off, "10" reads "1".
        raise WireError(f"finish_reason: got {str(reason)[:40]!r}, expected 'stop'; see mapping.parameters.max_tokens")
    if not isinstance(text, str):
        got = f"{type(text).__name__}, " + ("no answer at all, " if text is None else "")
        raise WireError(f"content: got {got}expected text")
    reader = ScoreReader(options.scale, options.words, options.pattern, options.score, options.reasoning)
    return [reader.read_text(text, "content")]


def _only_choice(reply: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    refuse_error(reply, "an answer")
    match reply:
        case {"choices": [{"message": dict(message)} as choice]}:
            return choice, message
    raise WireError(f"reply: got the keys {keys_shown(reply)}, expected one entry in choices, with a message")


def _parts(message: dict[str, Any]) -> tuple[Any, str]:
    """The text and the refusal of a message, whose content may be a list of parts; thoughts are left out."""
    content, refusal = message.get("content"), message.get("refusal")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        refusal = refusal or next((part["refusal"] for part in parts if part.get("refusal")), None)
        texts = [part["text"] for part in parts if part.get("type") in ("text", "output_text") and part.get("text")]
        if len(texts) > 1:
            raise WireError(f"content: got {len(texts)} parts of text, expected one")
        content = texts[0] if texts else None
    return content, refusal if isinstance(refusal, str) else ""


def _first_logprobs(choice: dict[str, Any]) -> list[tuple[str, float]]:
    match choice:
        case {"logprobs": {"content": [{"top_logprobs": list(entries)}, *_]}}:
            pass
        case _:
            raise WireError("logprobs: got none for the first token, expected them as asked for")
    pairs = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
            raise WireError(f"top_logprobs[{index}]: got no token, expected text")
        pairs.append((entry["token"], finite_number(entry.get("logprob"), f"top_logprobs[{index}].logprob")))
    return pairs


def _expected(logprobs: list[tuple[str, float]], answers: Mapping[str, float]) -> float:
    """Mean of the answers' values, weighted by their probability; other tokens must not be more likely."""
    values = {_plain(answer): value for answer, value in answers.items()}
    if any(logprob > 1e-3 for _, logprob in logprobs):
        raise WireError("top_logprobs: got a logprob above 0, expected logarithms of probabilities")
    weights = [(math.exp(logprob), values[_plain(token)]) for token, logprob in logprobs if _plain(token) in values]
    total = math.fsum(weight for weight, _ in weights)
    if not LEAST_PROBABILITY <= total <= 1.01:
        raise WireError(
            f"top_logprobs: got a probability of {total:.2f} for {', '.join(sorted(values))[:80]} as the first token, "
            f"expected {LEAST_PROBABILITY} to 1"
        )
    return math.fsum(weight * value for weight, value in weights) / total


def adapted(settings: Settings, error: str) -> Settings | None:
    """The settings with fewer `top_logprobs`, where the server's refusal names how many it gives; else None."""
    options = parsed(ChatOptions, settings)
    if options.answers is None or "logprobs" not in error.casefold():
        return None
    fewer = [number for number in map(int, SMALL_NUMBER.findall(error)) if 1 <= number < options.top_logprobs]
    return {**settings, "top_logprobs": max(fewer)} if fewer else None


CODEC = ProtocolCodec(check, encode, decode, one_image=lambda settings: True, adapted=adapted)
