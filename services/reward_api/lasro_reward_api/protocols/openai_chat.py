"""A vision-language model as judge behind an OpenAI-compatible POST {base}/chat/completions, one image per call.

The registered URL is the base as OpenAI's clients take it, with its /v1. Written from the request and reply models in
    vllm/entrypoints/openai/chat_completion/protocol.py      vllm-project/vllm 002032ee2b18e1f7bd924ec47b62504ba3866063
    python/sglang/srt/entrypoints/openai/protocol.py         sgl-project/sglang 004c82e07d876f6e4a0ad6e15325706b0f478f1a
    openai/openai.go                                         ollama/ollama fb30760996871fa9460115c753afd2c60d4ab0f7
Of these, Ollama takes images as data URIs only and knows `max_tokens` but not `max_completion_tokens`.

The score is the number that the judge states, mapped from `scale` to [0, 1]:
    mapping = {"model": "Qwen/Qwen3-VL-8B-Instruct", "rubric": "... {prompt} ...", "scale": [0, 10]}
or, with `answers`, the mean of their values weighted by the probability of each as the first token:
    mapping = {"model": "...", "answers": {"yes": 1, "no": 0}}
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from lasro.errors import WireError
from lasro_reward_api.protocols.base import Batch, HttpRequest, ItemResult, ProtocolCodec, Rejected, Settings
from lasro_reward_api.protocols.bodies import base64_text, image_type, json_parts
from lasro_reward_api.protocols.options import Json, Options, Text, parsed
from lasro_reward_api.protocols.replies import finite_number, json_object, keys_shown

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
Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
OWN_PARAMETERS = ("model", "messages", "stream", "n", "logprobs", "top_logprobs")
STATED = re.compile(r"(?:score\s*[:=]\s*)?([+-]?\d{1,9}(?:\.\d{1,9})?)", re.IGNORECASE | re.ASCII)
TOP_LOGPROBS = 20
LEAST_PROBABILITY = 0.5


class ChatOptions(Options):
    model: Text
    rubric: Text | None = None
    scale: tuple[Number, Number] = Field(default=(0.0, 10.0), strict=False)
    reasoning: bool = False
    """Whether text may come before the number, which then stands alone on the last line."""
    answers: dict[str, Number] | None = None
    parameters: dict[str, Json] = Field(default_factory=dict)
    """More of the request, such as max_tokens, seed or chat_template_kwargs."""

    @model_validator(mode="after")
    def _fits_together(self) -> ChatOptions:
        low, high = self.scale
        if low >= high:
            raise ValueError(f"scale: got {[low, high]}, expected [low, high] with low < high")
        if own := sorted(set(self.parameters) & set(OWN_PARAMETERS)):
            raise ValueError(f"parameters: got {own}, expected none of {', '.join(OWN_PARAMETERS)}")
        if self.answers is None:
            return self
        if unused := sorted({"scale", "reasoning"} & self.model_fields_set):
            raise ValueError(f"answers: got {unused} beside them, expected one or the other")
        plain = {_plain(answer) for answer in self.answers}
        if "" in plain or len(plain) < max(2, len(self.answers)):
            raise ValueError(f"answers: got {sorted(self.answers)[:5]}, expected two or more different words")
        if self.rubric is None and plain != {"yes", "no"}:
            raise ValueError("rubric: got nothing, expected a question that the answers fit")
        return self


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
        body.setdefault("max_tokens", 1 if options.answers else 1024 if options.reasoning else 16)
    if options.answers:
        body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    body |= {"model": options.model, "messages": [{"role": "user", "content": content}], "stream": False, "n": 1}
    return json_parts(body, "/chat/completions")


def _question(options: ChatOptions, prompt: str) -> str:
    low, high = options.scale
    values = {"{prompt}": prompt, "{low}": f"{low:g}", "{high}": f"{high:g}"}
    rubric = options.rubric or (YES_NO_RUBRIC if options.answers else STATED_RUBRIC)
    # In one pass, so that a prompt with {high} in it stays as it is.
    return re.sub(r"\{(?:prompt|low|high)\}", lambda found: values[found[0]], rubric)


def decode(content_type: str, body: bytes, count: int, settings: Settings) -> list[ItemResult]:
    options = parsed(ChatOptions, settings)
    choice, message = _only_choice(json_object(content_type, body))
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal:
        return [Rejected(f"the judge refuses: {refusal}"[:500])]
    if choice.get("finish_reason") == "content_filter":
        return [Rejected("the judge's content filter stopped the answer")]
    if options.answers is not None:
        return [_expected(_first_logprobs(choice), options.answers)]
    return [_stated(choice, message, options)]


def _only_choice(reply: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    match reply:
        case {"error": error} if error:
            raise WireError("reply: the server reports an error instead of an answer; see its log")
        case {"choices": [{"message": dict(message)} as choice]}:
            return choice, message
    raise WireError(f"reply: got the keys {keys_shown(reply)}, expected one entry in choices, with a message")


def _stated(choice: dict[str, Any], message: dict[str, Any], options: ChatOptions) -> float:
    reason, text = choice.get("finish_reason"), message.get("content")
    if reason != "stop":
        # Cut off, "10" reads "1".
        raise WireError(f"finish_reason: got {str(reason)[:40]!r}, expected 'stop'; see mapping.parameters.max_tokens")
    if not isinstance(text, str):
        raise WireError(f"content: got {type(text).__name__}, expected text")
    lines = text.strip().splitlines() if options.reasoning else [text.strip()]
    found = STATED.fullmatch(lines[-1].strip()) if lines else None
    if found is None:
        where = "on its last line" if options.reasoning else "and nothing else"
        raise WireError(f"content: got {text.strip()[-80:]!r}, expected a number {where}")
    number, (low, high) = float(found[1]), options.scale
    if not low <= number <= high:
        raise WireError(f"content: got {number:g}, expected a number in [{low:g}, {high:g}]")
    return (number - low) / (high - low)


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


CODEC = ProtocolCodec(check, encode, decode, one_image=lambda settings: True)
