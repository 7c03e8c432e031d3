"""Scores in words: what judges and services with text answer, and that no wrong number is ever read out of it."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasro.errors import ConfigError, WireError
from lasro.wire import Protocol
from lasro_reward_api.protocols import CODECS
from lasro_reward_api.protocols.base import ItemResult, Rejected

CHAT, MAPPING = CODECS[Protocol.OPENAI_CHAT], CODECS[Protocol.MAPPING]
JUDGE = {"model": "judge", "rubric": "How good is it? {prompt}"}
SERVICE = {"request": {"i": {"$each": "{{image}}"}}, "scores": "s"}
TEXT = SERVICE | {"text": True}
GOOD_BAD = {"words": {"Good": 1, "so so": 0.5, "bad": 0}}
FENCED = '```json\n{"score": 8, "reason": "2 of 3 cats"}\n```'


def judged(content: Any, settings: dict[str, Any], **message: Any) -> ItemResult:
    given = JUDGE | settings
    CHAT.check(given)
    choice = {"message": {"content": content} | message, "finish_reason": "stop"}
    [result] = CHAT.decode("application/json", json.dumps({"choices": [choice]}).encode(), 1, given)
    return result


def served(scores: Any, settings: dict[str, Any]) -> list[ItemResult]:
    MAPPING.check(settings)
    return MAPPING.decode("application/json", json.dumps({"s": scores}).encode(), len(scores), settings)


@pytest.mark.parametrize(
    ("settings", "content", "score"),
    [
        *(
            ({}, content, 0.8)
            for content in (
                "8", "8.", "8.0", "+8", "8/10", "8 / 10", "8.0/10.0", "8 out of 10", "8 out of 10.", "**8**",
                "**8/10**", "**8**/10", "__8__", "`8`", "$8$", "\\boxed{8}", "$\\boxed{8}$", '"8"', "Score: 8",
                "score=8", "**Score:** 8", "**Score: 8**", "# Score: 8", "Final Score: 8/10", "Overall rating: 8",
                "The score is 8.", "Score:\n8", "My final answer is \\boxed{8}.", "<score>8</score>",
                "<Score> 8/10 </Score>",
                "<answer>8</answer>", "The 2 cats are there. <score>8</score>",
                '{"score": 8}', '{"score": 8.0}', '{"score": "8/10"}',
                '{"Overall_Score": 8, "max": 10, "cats": 2}', '{"final-score": 8}', FENCED, "```\n8\n```", "```8```",
                '```\n{"rating": 8}\n```', "<think>7 or 9? 8/9</think>8", "3 cats, so 6.</think>\n\n**8**",
                "<thinking>a</thinking> b</think>Score: 8",
            )
        ),
        ({"scale": [1, 5]}, "4/5", 0.75),
        ({"scale": [0, 100]}, "80%", 0.8),
        ({"scale": [0, 100]}, "Score: 80 %", 0.8),
        ({"scale": [-1, 1]}, "-.5", 0.25),
        ({"reasoning": True}, "3 cats of 4.\nScore: 8/10", 0.8),
        ({"reasoning": True}, f"3 cats of 4.\n\n{FENCED}", 0.8),
        ({"reasoning": True}, 'I see {3} cats.\n{\n  "score": 8,\n  "parts": {"a": 1}\n}', 0.8),
        ({"reasoning": True}, "3 cats.\n<answer>8</answer>", 0.8),
        ({"score": "alignment.score"}, '{"alignment": {"score": 8}, "quality": {"score": 3}}', 0.8),
        ({"score": "[1]"}, "```json\n[3, 8]\n```", 0.8),
        ({"score": "a", "reasoning": True}, 'Well:\n{"a": "8/10", "score": 3}', 0.8),
        ({"pattern": r"Alignment:\s*([0-9.]+)"}, "Quality: 3/10\nAlignment: 8/10\nSum: 11", 0.8),
        ({"pattern": r"(?i)final score:? \**([0-9.]+)"}, "Score 3. Final Score: **8**. Again: final score 8.", 0.8),
        (GOOD_BAD, "good", 1.0),
        (GOOD_BAD, "**Good.**", 1.0),
        (GOOD_BAD, "Answer: SO  SO!", 0.5),
        (GOOD_BAD | {"score": "verdict"}, '{"verdict": "bad", "score": 9}', 0.0),
        (GOOD_BAD | {"pattern": r"verdict is (\w+)"}, "3 cats. The verdict is good.", 1.0),
        (GOOD_BAD | {"reasoning": True}, "Not bad at all.\nGood", 1.0),
        ({"words": {"true": 1, "false": 0}, "score": "ok"}, '{"ok": true}', 1.0),
    ],
)  # fmt: skip
def test_what_judges_say_is_their_score(settings: dict[str, Any], content: str, score: float) -> None:
    """Bug: of a judge that writes `8/10` or puts its number in a fence, no sample had a score."""
    assert judged(content, settings) == pytest.approx(score)


@pytest.mark.parametrize(
    ("settings", "content", "reason"),
    [
        *(
            ({}, content, "expected a number and nothing else")
            for content in (
                "7 or 8", "7-8", "7\u20138", "between 7 and 8", "7, 8", "8,5", "1,000", "7\n8", "7 8", "8/10/10",
                "8 / 10 of 10", "~~7~~", "1*0", "1_0", "1`0", "1$0", "- *8*", "about 8", ">7", "8e0", "0x8", "\u0668",
                "\u00bd", "8k", "eight", "Score", "Score: ", "Score: x", "Score (out of 5): 4", "I saw 8 cats",
                "8 cats", "#1", "[8]", "(8)", "8 8", "```json\n8\n```\n```\n9\n```", "```8\n9\n```", "", " ", "NaN",
                "inf", "/10",
                "8/", "8 out of", "\\boxed{7}\\boxed{8}",
            )
        ),
        ({}, "8/5", "got '8/5', a number out of 5, expected one out of 10"),
        ({}, "3/5", "expected one out of 10"),
        ({}, "80%", "a number out of 100, expected one out of 10"),
        ({}, "8/100", "expected one out of 10"),
        ({"scale": [0, 1]}, "8/10", "expected one out of 1"),
        ({}, "11/10", r"got 11, expected a number in \[0, 10\]"),
        ({}, "<score>7</score><score>8</score>", "expected one score in tags"),
        ({}, "<score>7</score> <rating>8</rating>", "expected one score in tags"),
        ({}, "<score>7", "expected one score in tags"),
        ({}, '{"alignment": 7, "quality": 8}', r"keys \['alignment', 'quality'\], expected one score; name it in"),
        ({}, '{"score": 7, "rating": 8}', "expected one score; name it"),
        ({}, '{"score": 7, "score": 8}', "expected JSON and nothing else"),
        ({}, '{"score": 7} or 8', "expected JSON and nothing else"),
        ({}, '{"score": {"a": 7}}', "got dict, expected a number"),
        ({}, '{"score": true}', "got bool, expected a number"),
        ({}, '{"score": null}', "got NoneType"),
        ({}, '{"score": NaN}', "got nan"),
        ({}, '{"score": 1' + "0" * 400 + "}", "too large for a float"),
        ({}, "{" * 60_000, "got 60000 characters, expected at most 50000"),
        ({}, '{"score": ' + "[" * 40_000, "expected JSON"),
        ({}, "<think>is it 7 or 8", "got thoughts without an end; raise mapping.parameters.max_tokens"),
        ({}, "<think>7</think>", "expected a number"),
        ({"reasoning": True}, "Score: 7\nScore: 7 or 8", "on its last line"),
        ({"reasoning": True}, f"{FENCED}\nThat is all.", "on its last line"),
        ({"score": "a.b"}, '{"a": 7}', "content.a.b: got int around it"),
        ({"score": "a.b"}, '{"a": {}}', "content.a.b: got nothing there"),
        ({"score": "a"}, "7", "content.a: got int around it"),
        ({"score": "a"}, '{"a": "7 or 8"}', "content, a: got '7 or 8', expected a number"),
        ({"score": "a"}, '{"a": 11}', "content, a: got 11"),
        ({"pattern": r"Score: (\d)"}, "Score: 10", "got a part of a number by mapping.pattern in 'Score: 10'"),
        ({"pattern": r"Score: (\d+)"}, "Score: 7.5", "got a part of a number"),
        ({"pattern": r"Score:\D*(\d+)"}, "Score: -7", "got a part of a number"),
        ({"pattern": r"Score: (\d+)"}, "Score: 7-8", "got a part of a number"),
        ({"pattern": r"Score: (\d+)"}, "Score: 7 or 8", "got a part of a number"),
        ({"pattern": r"Score: (\d+)"}, "Score: 7/5", "a number out of 5, expected one out of 10"),
        ({"pattern": r"Score: (\d+)"}, "Score: 7, no, Score: 8", "got 2 different matches of mapping.pattern"),
        ({"pattern": r"Score: (\d+)"}, "I cannot say.", "expected what mapping.pattern matches"),
        ({"pattern": r"Score: (\d+)?"}, "Score: none", "got a part of a number"),
        ({"pattern": r"Score: (.+)"}, "Score: 7 or 8", "expected a number"),
        (GOOD_BAD, "good or bad", "got 'good or bad', expected one of bad, good, so so"),
        (GOOD_BAD, "not good", "expected one of"),
        (GOOD_BAD, "7", "expected one of"),
        (GOOD_BAD | {"score": "s"}, '{"s": 1}', "got int, expected one of the words"),
    ],
)  # fmt: skip
def test_what_may_mean_two_scores_is_none(settings: dict[str, Any], content: str, reason: str) -> None:
    """Bug: a part of a number, one of two numbers or a number of cats is trained on."""
    with pytest.raises(WireError, match=reason) as refused:
        judged(content, settings)
    assert len(str(refused.value)) < 400


@given(st.integers(0, 10), st.integers(0, 10), st.text(st.sampled_from("*_`$#{}()[]\"'\\/,.;:|-~<> \n%or"), max_size=6))
def test_two_numbers_are_never_one_score(first: int, second: int, between: str) -> None:
    """Bug: what stands between two numbers is dropped, and they are read as one, or the first alone."""
    text = f"{first}{between}{second}"
    one_number = {f"{first}{second}", f"{first}.{second}"}  # as written: 1 and 0 without anything between are 10
    fraction = between.strip("*_`$ \n") == "/" and second == 10
    try:
        score = judged(text, {})
    except WireError:
        return
    assert fraction or text in one_number
    assert score == pytest.approx(float(first if fraction else text) / 10)


@given(
    st.text(max_size=60), st.sampled_from([{}, {"reasoning": True}, {"score": "a"}, {"pattern": r"(\d+)"}, GOOD_BAD])
)
def test_any_text_is_a_score_in_range_or_refused(content: str, settings: dict[str, Any]) -> None:
    """Bug: some text ends the request, or becomes a number outside [0, 1]."""
    try:
        score = judged(content, settings)
    except WireError:
        return
    assert isinstance(score, float)
    assert 0 <= score <= 1


@pytest.mark.parametrize("text", ["\n", " ", "<score>", "<think>", "```", "# ", "*", "\\boxed{", "score ", '{"', "["])
def test_no_text_holds_the_service_up(text: str) -> None:
    """Bug: a judge that repeats itself without end costs seconds of the whole service."""
    content = f"8{text * (49_000 // len(text))}9 or 8"
    started_s = time.thread_time()
    for settings in ({}, {"reasoning": True}, {"score": "a"}, GOOD_BAD):
        with pytest.raises(WireError):
            judged(content, settings)
    assert time.thread_time() - started_s < 1


@pytest.mark.parametrize(
    "text",
    [
        "\u22123",
        "\u20133",
        "8\u00bd",
        "8~9",
        "8 \uff5e 9",
        "1 000",
        "1\u00a0000",
        "8\u20445",
        "8\uff0f5",
        "8\uff05",
        "8 \u00b1 2",
    ],
)
def test_a_pattern_takes_no_part_of_a_number_in_other_signs(text: str) -> None:
    """Bug: a judge's -3 with a typographic minus became 3, its 8 1/2 became 8 and its 1 000 became 1."""
    with pytest.raises(WireError, match="a part of a number"):
        judged(f"Score {text}.", {"pattern": r"Score \D?(\d+)"})


@pytest.mark.parametrize("text", ["8\u70b9", "8 \u2013 good", "8 / good", "8, fine", "8\n3 flaws"])
def test_a_pattern_takes_a_number_before_other_words(text: str) -> None:
    """Bug: a check for ranges and fractions that refused a score with words behind it."""
    assert judged(f"Score {text}", {"pattern": r"Score (\d+)"}) == 0.8


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(?:a|a)*(b)", r"(?:a*)*(b)", r"(?:.*.*.*.*)=(\d)"])
def test_a_pattern_without_end_holds_nothing_up(pattern: str) -> None:
    """Bug: a regular expression that backtracks without end stops the service for all rewards."""
    started_s = time.thread_time()
    with pytest.raises(WireError, match=r"mapping.pattern (took more than|matches)|expected a number"):
        judged("a" * 40_000 + "c", {"pattern": pattern})
    assert time.thread_time() - started_s < 1


def test_content_in_parts_is_read_and_a_refusal_in_them_is_one() -> None:
    """Bug: servers that answer with a list of parts could not judge; a thought's number was taken for the score."""
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "3"}]}
    assert judged([thought, {"type": "text", "text": "8"}], {}) == 0.8
    assert judged([{"type": "refusal", "refusal": "No."}], {}) == Rejected("the judge refuses: No.")
    for content, reason in (
        ([{"type": "text", "text": text} for text in "10"], "got 2 parts"),
        ([], "no answer at all"),
    ):
        with pytest.raises(WireError, match=reason):
            judged(content, {})


@pytest.mark.parametrize(
    ("settings", "scores", "results"),
    [
        (TEXT, ["0.5", 2, "-3.25", "Score: 7"], [0.5, 2.0, -3.25, 7.0]),
        (TEXT | {"scale": [0, 10]}, ["8/10", 4], [0.8, 0.4]),
        (SERVICE | {"scale": [0, 10]}, [8, 4.0], [0.8, 0.4]),
        (SERVICE | GOOD_BAD, ["good", "BAD"], [1.0, 0.0]),
        (SERVICE | {"words": {"true": 1, "false": 0}}, [True, "false"], [1.0, 0.0]),
        (SERVICE | {"pattern": r"Score: ([0-9.]+)"}, ["Cats: 3. Score: 7.5"], [7.5]),
    ],
)
def test_services_may_answer_text_where_mapping_says_so(settings: Any, scores: Any, results: Any) -> None:
    """Bug: a service that answers "good" or "0.5" could not be a reward without a program in between."""
    assert served(scores, settings) == results


@pytest.mark.parametrize(
    ("settings", "scores", "reason"),
    [
        (SERVICE, ["0.5"], r"scores\[0\]: got str, expected a number; mapping.text or mapping.words take text"),
        (TEXT, ["8/10"], "out of 10, expected a number; mapping.scale says what it is out of"),
        (TEXT, [True], "got bool"),
        (SERVICE | {"scale": [0, 1]}, ["1"], "got str"),
        (SERVICE | {"scale": [0, 1]}, [2], r"got 2, expected a number in \[0, 1\]"),
        (SERVICE | GOOD_BAD, [1], "got int, expected one of the words"),
        (SERVICE | {"pattern": "(.)"}, [1], "got int, expected text"),
    ],
)
def test_services_answer_no_other_text(settings: Any, scores: Any, reason: str) -> None:
    """Bug: text becomes a number where nobody asked for that."""
    with pytest.raises(WireError, match=reason):
        served(scores, settings)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (JUDGE | {"pattern": "("}, r"mapping.pattern: got '\(', expected a regular expression"),
        (JUDGE | {"pattern": r"\d"}, "mapping.pattern: got 0 groups"),
        (JUDGE | {"pattern": r"(\d)(\d)"}, "mapping.pattern: got 2 groups"),
        (JUDGE | {"pattern": "(a)", "score": "a"}, r"mapping.pattern: got \['score'\] as well"),
        (JUDGE | {"score": "a[*]"}, r"mapping.score: got \[\*\]"),
        (JUDGE | GOOD_BAD | {"scale": [0, 1]}, r"mapping.words: got \['scale'\] as well"),
        (JUDGE | {"words": {"good": 1}}, "mapping.words: got .* expected two or more"),
        ({"model": "m"} | GOOD_BAD, "mapping.rubric: got nothing"),
        ({"model": "m", "score": "a"}, "mapping.rubric: got nothing"),
        ({"model": "m", "top_logprobs": 5}, "mapping.top_logprobs: got it without answers"),
        ({"model": "m", "answers": {"yes": 1, "no": 0}, "top_logprobs": 0}, "mapping.top_logprobs: got 0"),
    ],
)
def test_settings_of_text_that_contradict_are_refused(settings: Any, reason: str) -> None:
    """Bug: a pattern that cannot give a score is stored, and every image fails."""
    with pytest.raises(ConfigError, match=reason):
        CHAT.check(settings)
    with pytest.raises(ConfigError, match=r"mapping\.words: got text or scale"):
        MAPPING.check(TEXT | GOOD_BAD)


@pytest.mark.parametrize(
    ("error", "fewer"),
    [
        ("HTTP 400 Bad Request: Requested sample logprobs of 20, which is greater than max allowed: 5", 5),
        ("HTTP 400 Bad Request: Cannot request more than 5 logprobs.", 5),
        ("HTTP 422 Unprocessable Entity: body.top_logprobs: Input should be less than or equal to 5", 5),
        (
            "Invalid value for 'top_logprobs': integer above maximum value. Expected a value <= 8, but got 20 instead.",
            8,
        ),
        ("20 is greater than the maximum of 1 - 'logprobs'", 1),
        ("gpt-4: top_logprobs must be between 0 and 5", 5),
        ("Range of top_logprobs should be [0, 5]", 5),
        ("top_logprobs: expected 0-10", 10),
        ("logprobs are not supported by this model", None),
        ("top_logprobs must be an integer", None),
        ("max_tokens must be at most 5", None),
    ],
)
def test_a_refusal_says_how_many_logprobs_there_are(error: str, fewer: int | None) -> None:
    """Bug: behind a server that gives 5 logprobs, `answers` never got one, though its refusal said what to ask for."""
    settings = {"model": "m", "answers": {"yes": 1, "no": 0}}
    assert CHAT.adapted(settings, error) == (None if fewer is None else settings | {"top_logprobs": fewer})
    assert CHAT.adapted({"model": "m"}, error) is None
    assert MAPPING.adapted({}, error) is None
