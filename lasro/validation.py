"""What pydantic found wrong, on one line: what was got, what was expected, and for a typo what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

LONGEST_PROBLEM = 300
LONGEST_VALUE = 60
TAG = "type"
"""The setting that tells the kinds of a table apart."""
KIND = "is a "
"""What the names of kinds begin with that no setting tells apart: a value's form does."""


def explain(error: ValidationError, settings: type[BaseModel] | None = None) -> str:
    """The first few problems. Of a message from outside without its payload; of `settings`, which the user wrote, with
    the value that was got, and for a setting that does not exist with those that do.
    """
    problems = error.errors(include_url=False, include_context=False)
    lines = [_message(problem) if settings is None else _of_setting(problem, settings) for problem in problems[:3]]
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return "; ".join(one_line(line) for line in lines) + more


def one_line(text: str) -> str:
    """For messages: names of keys and tensors are the sender's words, and may be long or hold line breaks."""
    return " ".join(text.split())[:LONGEST_PROBLEM]


def _message(problem: ErrorDetails) -> str:
    got = f", got {type(problem['input']).__name__}" if problem["type"].endswith("_type") else ""
    return f"{_name(problem['loc'])}: {problem['msg']}{got}"


def _of_setting(problem: ErrorDetails, settings: type[BaseModel]) -> str:
    where, value = _without_tags(problem["loc"], settings), problem["input"]
    if problem["type"] == "extra_forbidden":
        return f"{_name(where)}: no such setting; {_instead(problem['loc'], settings)}"
    if problem["type"] == "union_tag_invalid" and isinstance(value, Mapping):
        known = ", ".join(str(_tag(kind)) for kind in _kinds_at(problem["loc"], settings))
        return f"{_name([*where, TAG])}: got {repr(value.get(TAG))[:LONGEST_VALUE]}, expected one of {known}"
    place = f"{_name(where)}: " if where else ""  # else it is about settings of several tables, which it names
    if isinstance(value, str | int | float):
        return f"{place}got {repr(value)[:LONGEST_VALUE]}. {_words(problem)}"
    return f"{place}{_words(problem)}"


def _words(problem: ErrorDetails) -> str:
    """What our validators say, or pydantic."""
    return problem["msg"].removeprefix("Value error, ")


def _name(where: Sequence[int | str]) -> str:
    return ".".join(map(str, where)) or "body"


def _without_tags(where: Sequence[int | str], settings: type[BaseModel]) -> list[int | str]:
    """A place as the user wrote it: within a union pydantic also names the kind, as in `method.lasro.score_clip`."""
    told = [key for key in where if not str(key).startswith(KIND)]
    return [key for index, key in enumerate(told) if not _chosen(key, _kinds_at(told[:index], settings))]


def _instead(where: Sequence[int | str], settings: type[BaseModel]) -> str:
    """What a setting that does not exist is most like, or all that its table has."""
    *table, key = where
    fields = sorted(_kinds_at(table, settings)[0].model_fields)
    meant = difflib.get_close_matches(str(key), fields, n=1)
    if not meant:
        return f"expected one of {', '.join(fields)}"
    return f"did you mean {_name([*_without_tags(table, settings), *meant])}?"


def _kinds_at(table: Sequence[int | str], settings: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that a table may be of: [] is the whole file, ["rewards", 0] the first of its rewards."""
    kinds = [settings]
    for key in table:
        field = None if isinstance(key, int) else kinds[0].model_fields.get(key)
        kinds = _chosen(key, kinds) or (kinds if field is None else list(_models_in(field.annotation)) or kinds)
    return kinds


def _chosen(key: int | str, kinds: Sequence[type[BaseModel]]) -> list[type[BaseModel]]:
    """Of the kinds of a union the one that this tag names; empty where it is no tag."""
    return [kind for kind in kinds if len(kinds) > 1 and _tag(kind) == key]


def _tag(kind: type[BaseModel]) -> Any:
    return next(iter(get_args(kind.model_fields[TAG].annotation)), None) if TAG in kind.model_fields else None


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
