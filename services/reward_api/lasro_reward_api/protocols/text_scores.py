"""Scores that come as text, from a judge or a service. What could be read in two ways is no score.

A number may carry emphasis, a label and what it is out of: `8`, `**8**`, `Score: 8`, `8/10`, `8 out of 10`.
It may stand in a JSON object under `score` or the like, in a fenced block, or in `<score>` tags. A denominator, or 100
where there is a percent sign, has to be the upper end of the scale. A comma is refused: 8,5 is one number or two.
`words` give the values of text scores, `pattern` takes one of several numbers out of a longer text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any

import regex
from pydantic import AfterValidator, Field

from lasro.errors import WireError
from lasro_reward_api.protocols.json_path import Every, parse_path, select
from lasro_reward_api.protocols.replies import finite_number, keys_shown

Scale = tuple[float, float]
Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
MAX_TEXT = 50_000
PATTERN_S = 0.05
"""A pattern that backtracks without end holds the service up no longer."""
MAX_MATCHES = 100

NUMBER = r"[+-]?(?:\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})"
OUT_OF = rf"(?:\s*(?:/|out\s+of)\s*(?P<whole>{NUMBER})|\s*(?P<percent>%))"
NAME = r"(?:(?:the|my)\s+)?(?:(?:final|overall|total)\s+)?(?:score|rating|grade|answer)"
LABEL = rf"(?:{NAME}\s*(?::|=|\bis\b)\s*)?"
STATED = re.compile(rf"{LABEL}(?P<number>{NUMBER}){OUT_OF}?\s*\.?", re.IGNORECASE | re.ASCII)
WORD = re.compile(rf"{LABEL}(.*?)\s*[.!]?", re.IGNORECASE | re.DOTALL)
SCORE_KEY = re.compile(NAME, re.IGNORECASE)
TAG = re.compile(r"<(score|rating|answer)>", re.IGNORECASE | re.ASCII)
THOUGHT_END = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
THOUGHT = re.compile(r"<(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
EMPHASIS = re.compile(r"[*_`$]+|\\[()\[\]]|(?m:^[ \t]*\#{1,6}\s)")
"""Becomes a blank, never nothing: 1*0 is not 10."""
BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
DASHES = r"\-\u2010-\u2015\u2212\uff0d"
DIGIT_BEFORE = re.compile(rf"[\d.,+{DASHES}]\Z")
GOES_ON = re.compile(
    r"[A-Za-z\d\u00bc-\u00be\u2150-\u215f]|[.,]\d|\s*[\u2030\u2031\uff05]"
    rf"|\s*[{DASHES}/\u2044\u2215\uff0f~\uff5e\u00b1][ \t]*\d|[ \t\u00a0\u202f]+(?:(?:or|to)[ \t]+)?\d"
)
"""More digits or a fraction, a percent sign of other scripts, or a second number."""
OUT_OF_AFTER = re.compile(OUT_OF, re.IGNORECASE | re.ASCII)


def _one_group(text: str) -> str:
    try:
        groups = regex.compile(text).groups
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"got {text[:60]!r}, expected a regular expression ({error})") from error
    if groups != 1:
        raise ValueError(f"got {groups} groups in {text[:60]!r}, expected one, around the score")
    return text


def _one_value(text: str) -> str:
    if Every.ENTRY in parse_path(text):
        raise ValueError(f"got [*] in {text[:60]!r}, expected a path to one value")
    return text


def _words(words: dict[str, float]) -> dict[str, float]:
    if "" in (plain := {_plain(word) for word in words}) or len(plain) < max(2, len(words)):
        raise ValueError(f"got {sorted(words)[:5]}, expected two or more different words")
    return words


Pattern = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_one_group)]
ValuePath = Annotated[str, AfterValidator(_one_value)]
Words = Annotated[dict[str, Number], Field(max_length=100), AfterValidator(_words)]


def _plain(text: str) -> str:
    return " ".join(EMPHASIS.sub(" ", text).casefold().split())


def check_scale(scale: Scale) -> None:
    """Raise ValueError, for pydantic to report, unless it goes up."""
    if scale[0] >= scale[1]:
        raise ValueError(f"scale: got {list(scale)}, expected [low, high] with low < high")


@dataclass(frozen=True)
class ScoreReader:
    """How a protocol's settings say that its scores come as text.

    `words` are text scores and their values, `pattern` is a regular expression whose one group is the score, `path`
    leads to the score in a text that is JSON. With `at_end` anything may come before the last line or block. Numbers
    are mapped from `scale` to [0, 1], or stay as they are.
    """

    scale: Scale | None = None
    words: Mapping[str, float] | None = None
    pattern: str | None = None
    path: str | None = None
    at_end: bool = False

    def read_text(self, text: str, where: str) -> float:
        """The score that a text states; raises WireError where it states none, or several may be meant."""
        if len(text) > MAX_TEXT:
            raise WireError(f"{where}: got {len(text)} characters, expected at most {MAX_TEXT}")
        text = _without_thoughts(text, where)
        if self.pattern is not None:
            return self._matched(text, self.pattern, where)
        answer = _tagged(text, where) if self.path is None else None
        if answer is None:
            answer = _last_block(text) if self.at_end else _unfenced(text)
        if self.path is not None:
            return self.read_value(select(parse_path(self.path), _json(answer, where), where), f"{where}, {self.path}")
        if answer.startswith("{"):
            return self.read_value(_score_entry(_json(answer, where), where), where)
        return self.read_value(answer, where, " on its last line" if self.at_end else " and nothing else")

    def read_value(self, value: Any, where: str, place: str = "") -> float:
        """A score that is a number, or text with nothing but the score in it. `place` ends the message of a refusal."""
        if self.words is not None:
            return _value_of_word(value, self.words, where)
        if not isinstance(value, str):
            return self._mapped(finite_number(value, where), where)
        found = STATED.fullmatch(EMPHASIS.sub(" ", BOXED.sub(r" \1 ", _unquoted(value))).strip())
        if found is None:
            raise WireError(f"{where}: got {value.strip()[-80:]!r}, expected a number{place}")
        whole = 100.0 if found["percent"] else float(found["whole"]) if found["whole"] else None
        if whole is not None and (self.scale is None or whole != self.scale[1]):
            wanted = f"one out of {self.scale[1]:g}" if self.scale else "a number; mapping.scale says what it is out of"
            raise WireError(f"{where}: got {value.strip()[-80:]!r}, a number out of {whole:g}, expected {wanted}")
        return self._mapped(float(found["number"]), where)

    def _mapped(self, number: float, where: str) -> float:
        if self.scale is None:
            return number
        low, high = self.scale
        if not low <= number <= high:
            raise WireError(f"{where}: got {number:g}, expected a number in [{low:g}, {high:g}]")
        return (number - low) / (high - low)

    def _matched(self, text: str, pattern: str, where: str) -> float:
        matches = _matches(text, pattern, where)
        if self.words is not None:
            scores = {self.read_value(match[1], where) for match in matches}
        else:
            scores = {self.read_value(_whole_number(text, match, where), where) for match in matches}
        if len(scores) > 1:
            raise WireError(f"{where}: got {len(scores)} different matches of mapping.pattern, expected one score")
        return scores.pop()


def _value_of_word(value: Any, words: Mapping[str, float], where: str) -> float:
    given = json.dumps(value) if isinstance(value, bool) else value
    if not isinstance(given, str):
        raise WireError(f"{where}: got {type(value).__name__}, expected one of the words in mapping.words")
    found = WORD.fullmatch(_plain(_unquoted(given)))
    values = {_plain(word): number for word, number in words.items()}
    if found is None or found[1] not in values:
        raise WireError(f"{where}: got {given.strip()[-80:]!r}, expected one of {', '.join(sorted(values))[:80]}")
    return values[found[1]]


def _without_thoughts(text: str, where: str) -> str:
    """What follows a reasoning model's thoughts, whose opening tag may have been part of the question."""
    text = THOUGHT_END.split(text)[-1].strip()
    if THOUGHT.match(text):
        raise WireError(f"{where}: got thoughts without an end; raise mapping.parameters.max_tokens")
    return text


def _matches(text: str, pattern: str, where: str) -> list[regex.Match[str]]:
    try:
        matches = list(islice(regex.finditer(pattern, text, timeout=PATTERN_S), MAX_MATCHES))
    except TimeoutError as error:
        raise WireError(f"{where}: mapping.pattern took more than {PATTERN_S} s; write it without nesting") from error
    if not matches:
        raise WireError(f"{where}: got {text[-80:]!r}, expected what mapping.pattern matches")
    return matches


def _whole_number(text: str, match: regex.Match[str], where: str) -> str:
    """What a pattern's group found, with what it is out of; refused where the group took a part of a number."""
    start, end = match.span(1)
    if out_of := OUT_OF_AFTER.match(text, end):
        end = out_of.end()
    if start < 0 or DIGIT_BEFORE.search(text, max(0, start - 1), start) or GOES_ON.match(text, end):
        around = text[max(0, start - 20) : end + 20]
        raise WireError(f"{where}: got a part of a number by mapping.pattern in {around!r}, expected all of it")
    return text[start:end]


def _tagged(text: str, where: str) -> str | None:
    """What stands in the only pair of score tags; None where there is none."""
    tags = list(islice(TAG.finditer(text), 2))
    if not tags:
        return None
    end = re.compile(rf"</{tags[0][1]}>", re.IGNORECASE).search(text, tags[0].end())
    if len(tags) > 1 or end is None:
        raise WireError(f"{where}: got {text[-80:]!r}, expected one score in tags")
    return text[tags[0].end() : end.start()]


def _unfenced(text: str) -> str:
    """A text that is one fenced block without its fences."""
    inner = text[3:-3]
    if not (len(text) > 6 and text.startswith("```") and text.endswith("```")) or "```" in inner:
        return text
    language, newline, rest = inner.partition("\n")
    return rest.strip() if newline and (language.strip().isalpha() or not language.strip()) else inner.strip()


def _last_block(text: str) -> str:
    """The fenced block or JSON object that ends a text, or its last line."""
    if text.endswith("```"):
        return _unfenced(text[max(0, text.rfind("```", 0, -3)) :])
    start = text.rfind("\n{" if text.endswith("}") else "\n") + 1
    return text[start:].strip()


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "\"'" else text


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{where}: got {text[-80:]!r}, expected JSON and nothing else") from error


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _score_entry(found: Any, where: str) -> Any:
    """What stands under the one key of a JSON object that names a score."""
    names = [name for name in found if SCORE_KEY.fullmatch(_plain(name.replace("-", " ")))]
    if len(names) != 1:
        raise WireError(f"{where}: got the keys {keys_shown(found)}, expected one score; name it in mapping.score")
    return found[names[0]]
