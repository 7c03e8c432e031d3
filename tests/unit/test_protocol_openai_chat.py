"""A judge behind an OpenAI-compatible API: what it is asked, and what of its words is a score."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from lasro.errors import ConfigError, WireError
from lasro.wire import Protocol
from lasro_reward_api.protocols import CODECS
from lasro_reward_api.protocols.base import Batch, HttpRequest, ItemResult, Rejected

CODEC = CODECS[Protocol.OPENAI_CHAT]
FIRST = Batch(["a cat"], [b"\x89PNG"], [{"a": [1, None]}])
MODEL = {"model": "judge"}
YES_NO = MODEL | {"answers": {"yes": 1, "no": 0}}


def decoded(reply: Any, count: int, settings: dict[str, Any]) -> list[ItemResult]:
    return CODEC.decode("application/json", json.dumps(reply).encode(), count, settings)


def asked(batch: Batch, settings: dict[str, Any]) -> tuple[HttpRequest, Any]:
    CODEC.check(settings)
    request = CODEC.encode(batch, settings)
    return request, json.loads(request.content)


def said(content: Any, finish_reason: str | None = "stop", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": content} | more
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}


def thought(*pairs: tuple[str, float]) -> dict[str, Any]:
    reply = said(pairs[0][0], "length")
    top = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in pairs]
    reply["choices"][0]["logprobs"] = {"content": [top[0] | {"top_logprobs": top}]}
    return reply


def test_a_judge_is_asked_with_image_and_prompt() -> None:
    """Bug: the judge does not see the image or the prompt, answers at random or streams."""
    request, body = asked(FIRST, MODEL | {"parameters": {"seed": 3}})
    assert request.path == "/chat/completions"
    [message] = body.pop("messages")
    assert body == {"model": "judge", "stream": False, "n": 1, "temperature": 0, "max_tokens": 16, "seed": 3}
    image, text = message["content"]
    assert image == {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}
    assert "\n\na cat\n\n" in text["text"]
    assert "from 0 to 10" in text["text"]


def test_a_prompt_cannot_fill_in_the_rubric() -> None:
    """Bug: braces in a user's prompt are replaced, or raise."""
    batch = Batch(["{high} {prompt} {0}"], [b"\x89PNG"], [None])
    _, body = asked(batch, MODEL | {"rubric": "<{prompt}> up to {high}"})
    assert body["messages"][0]["content"][1]["text"] == "<{high} {prompt} {0}> up to 10"


def test_the_newer_name_of_max_tokens_replaces_the_older() -> None:
    """Bug: servers that know only max_completion_tokens refuse the request."""
    _, body = asked(FIRST, MODEL | {"parameters": {"max_completion_tokens": 4}})
    assert body["max_completion_tokens"] == 4
    assert "max_tokens" not in body


@pytest.mark.parametrize(
    ("settings", "content", "score"),
    [
        ({}, "7", 0.7),
        ({}, " Score: 2.5\n", 0.25),
        ({"scale": [1, 5]}, "4", 0.75),
        ({"scale": [-1, 1]}, "-0.5", 0.25),
        ({"reasoning": True}, "The 3 cats are red.\n\nScore: 10", 1.0),
    ],
)
def test_a_stated_number_is_mapped_to_the_unit_interval(settings: Any, content: str, score: float) -> None:
    """Bug: the scale is ignored, or a number in the reasoning is taken for the score."""
    assert decoded(said(content), 1, MODEL | settings) == [score]


@pytest.mark.parametrize(
    ("settings", "reply", "reason"),
    [
        ({}, said("I cannot judge this image."), "expected a number and nothing else"),
        ({}, said("7 or 8"), "expected a number"),
        ({}, said("7/20"), "expected one out of 10"),
        ({}, said("There are 3 cats.\n7"), "expected a number and nothing else"),
        ({}, said("nan"), "expected a number"),
        ({}, said("1e1"), "expected a number"),
        ({}, said("\u0667"), "expected a number"),
        ({}, said(""), "expected a number"),
        ({}, said("11"), r"got 11, expected a number in \[0, 10\]"),
        ({}, said("-1"), "got -1"),
        ({}, said("1", "length"), "finish_reason: got 'length'"),
        ({}, said("7", None), "finish_reason: got 'None'"),
        ({}, said(None), "content: got NoneType"),
        ({}, said(7), "content: got int"),
        ({}, {"choices": []}, "expected one entry in choices"),
        ({}, {"choices": said("7")["choices"] * 2}, "expected one entry in choices"),
        ({}, {"error": {"message": "model not found"}}, "reports an error"),
        ({"reasoning": True}, said("Score: 7\nThat is all."), "on its last line"),
    ],
)
def test_what_states_no_score_is_no_score(settings: Any, reply: Any, reason: str) -> None:
    """Bug: a refusal, a cut-off number or a number from the middle of the text is trained on."""
    with pytest.raises(WireError, match=reason):
        decoded(reply, 1, MODEL | settings)


def test_a_refusal_is_the_judges_own_word() -> None:
    """Bug: a judge that declines is retried or reported as broken."""
    assert decoded(said(None, refusal="No."), 1, MODEL) == [Rejected("the judge refuses: No.")]
    [answer] = decoded(said("7", "content_filter"), 1, MODEL)
    assert isinstance(answer, Rejected)


def test_probabilities_of_the_answers_make_the_score() -> None:
    """Bug: spellings of one answer are not added up, or other tokens count."""
    _, body = asked(FIRST, YES_NO)
    assert (body["logprobs"], body["top_logprobs"], body["max_tokens"]) == (True, 20, 1)
    reply = thought(("Yes", math.log(0.4)), (" yes", math.log(0.2)), ("No", math.log(0.2)), ("I", math.log(0.2)))
    [score] = decoded(reply, 1, YES_NO)
    assert score == pytest.approx(0.6 / 0.8)
    grades = MODEL | {"answers": {"1": 1, "2": 2, "3": 3}, "rubric": "1, 2 or 3? {prompt}"}
    [score] = decoded(thought(("3", math.log(0.5)), ("1", math.log(0.5)), ("2", -9999.0)), 1, grades)
    assert score == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (said("yes", "length"), "logprobs: got none"),
        (thought(("I", -0.01), ("yes", -5.0)), "got a probability of 0.01 for no, yes"),
        (thought(("yes", 0.5)), "logprob above 0"),
        (thought(("yes", -0.1), ("YES", -0.1)), "got a probability of 1.81"),
        (thought(("yes", math.nan)), "expected a finite number"),
    ],
)
def test_probabilities_that_say_nothing_are_refused(reply: Any, reason: str) -> None:
    """Bug: a judge that begins to explain itself gets a score from the dregs of the distribution."""
    with pytest.raises(WireError, match=reason):
        decoded(reply, 1, YES_NO)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "mapping.model: got nothing"),
        (MODEL | {"scale": [10, 0]}, r"mapping.scale: got \[10.0, 0.0\], expected \[low, high\]"),
        (MODEL | {"scale": [0, "10"]}, "mapping.scale.1: got '10', expected a valid number"),
        (MODEL | {"parameters": {"messages": []}}, r"mapping.parameters: got \['messages'\], expected none of"),
        (MODEL | {"answers": {"yes": 1}}, "mapping.answers: got .*, expected two or more"),
        (MODEL | {"answers": {"yes": 1, "Yes ": 0}}, "expected two or more different"),
        (MODEL | {"answers": {"good": 1, "bad": 0}}, "mapping.rubric: got nothing"),
        (YES_NO | {"reasoning": True}, r"mapping.answers: got \['reasoning'\]"),
    ],
)
def test_settings_of_a_judge_that_contradict_are_refused(settings: Any, reason: str) -> None:
    """Bug: a reward is registered that can never score, or whose setting has no effect."""
    with pytest.raises(ConfigError, match=reason):
        CODEC.check(settings)
