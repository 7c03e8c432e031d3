"""Prompt files in JSON: an array, or JSONL with an object a line. Every value's line is known."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lasro.training.numbered_prompt import (
    LONGEST_PREVIEW,
    NumberedPrompt,
    bad_line,
    numbered_prompt,
    preview,
    prompt_names,
    text_lines,
)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {preview(next(name for name in names if names.count(name) > 1))} stands twice")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"got {text[:LONGEST_PREVIEW]}, expected a finite number")
    return number


DECODER = json.JSONDecoder(object_pairs_hook=_distinct, parse_float=_finite, parse_constant=_finite)
BLANKS = re.compile(r"[ \t\n]*")


def _after_blanks(text: str, position: int) -> int:
    found = BLANKS.match(text, position)
    assert found is not None, "it matches no blanks too"
    return found.end()


def _decode(path: Path, line: int, text: str, position: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at `position`, on `line`, and where it ends."""
    try:
        return DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        line += text.count("\n", position, error.pos)
        raise bad_line(path, line, f"not JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise bad_line(path, line, f"JSON that cannot be read ({str(error)[:LONGEST_PREVIEW]})") from error


def is_json(text: str) -> bool:
    """Whether all of it is one JSON value."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def read_jsonl(path: Path, text: str, comments: bool) -> Iterator[NumberedPrompt]:
    """An object or a string a line."""
    for number, line in text_lines(text, comments):
        if not line.startswith(("{", '"')):
            problem = f"got {preview(line)}, expected an object a line; name a JSON array .json, lines of text .txt"
            raise bad_line(path, number, problem)
        item, end = _decode(path, number, line)
        if line[end:].strip():
            raise bad_line(path, number, f"got {preview(line[end:].strip())} after the object, expected one a line")
        yield _from_item(path, number, item)


def read_json(path: Path, text: str, comments: bool) -> Iterator[NumberedPrompt]:
    """An array of strings or objects; JSON has no comments."""
    breaks = [found.start() for found in re.finditer("\n", text)]
    position = _after_blanks(text, 0)
    if text.startswith("{", position) and is_json(text):
        problem = (
            "got an object, expected a JSON array of prompts; take the arrays out of it, each to a file of its own"
        )
        raise bad_line(path, _line_at(breaks, position), problem)
    if not text.startswith("[", position):
        problem = "expected a JSON array of prompts; name a file of one object a line .jsonl, one of plain text .txt"
        raise bad_line(path, _line_at(breaks, position), problem)
    position = _after_blanks(text, position + 1)
    more = not text.startswith("]", position)
    while more:
        line = _line_at(breaks, position)
        item, position = _decode(path, line, text, position)
        yield _from_item(path, line, item)
        position = _after_blanks(text, position)
        if more := text.startswith(",", position):
            position = _after_blanks(text, position + 1)
    if not text.startswith("]", position):
        raise bad_line(path, _line_at(breaks, position), "not JSON (expected a comma or the end of the array)")
    position = _after_blanks(text, position + 1)
    if position < len(text):
        problem = "got more after the array, expected its end; give each array a file"
        raise bad_line(path, _line_at(breaks, position), problem)


def _line_at(breaks: Sequence[int], position: int) -> int:
    """The line of a position, from 1; `breaks` are the positions of line feeds."""
    return 1 + bisect_left(breaks, position)


def _from_item(path: Path, line: int, item: Any) -> NumberedPrompt:
    if isinstance(item, str):
        return numbered_prompt(path, line, item)
    if not isinstance(item, dict):
        raise bad_line(path, line, f'got {preview(item)}, expected text or an object such as {{"prompt": TEXT}}')
    keys = prompt_names(item)
    if len(keys) != 1:
        problem = f"got the keys {', '.join(keys)}, expected one of them"
        if not keys:
            problem = f"Field required, got the keys {preview(', '.join(item))}"
        raise bad_line(path, line, f'prompt: {problem}; expected {{"prompt": TEXT, ...}}')
    text = item[keys[0]]
    if not isinstance(text, str):
        raise bad_line(path, line, f"prompt: got {preview(text)}, expected text")
    others = {key: value for key, value in item.items() if key != keys[0]}
    return numbered_prompt(path, line, text, _joined(path, line, others))


def _joined(path: Path, line: int, others: dict[str, Any]) -> Any:
    """The metadata of an object: `metadata` alone as it is, other keys as a dict, both joined."""
    if others.keys() == {"metadata"}:
        return others["metadata"]
    metadata = others.pop("metadata", None)
    if metadata is None:
        return others or None
    names = ", ".join(map(str, list(others)[:3]))
    if not isinstance(metadata, dict):
        problem = f"metadata: got {preview(metadata)} together with the keys {preview(names)}, expected an object"
        raise bad_line(path, line, f"{problem}; move these keys into one")
    if twice := sorted(metadata.keys() & others.keys()):
        raise bad_line(path, line, f"got {preview(twice[0])} both in metadata and outside of it, expected it once")
    return others | metadata
