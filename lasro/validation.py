"""What pydantic found wrong, on one line: what was got, what was expected, and for a typo what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

LONGEST_PROBLEM = 300
LONGEST_VALUE = 60


def explain(error: ValidationError, settings: type[BaseModel] | None = None) -> str:
    """The first few problems. Of a message from outside without its payload; of `settings`, which the user wrote, with
    the value that was got, and for a setting that does not exist with those that do.
    """
    problems = error.errors(include_url=False, include_context=False, include_input=settings is not None)
    lines = [_message(problem) if settings is None else _of_setting(problem, settings) for problem in problems[:3]]
    more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
    return "; ".join(one_line(line) for line in lines) + more


def one_line(text: str) -> str:
    """For messages: names of keys and tensors are the sender's words, and may be long or hold line breaks."""
    return " ".join(text.split())[:LONGEST_PROBLEM]


def _message(problem: ErrorDetails) -> str:
    return f"{_name(problem['loc'])}: {problem['msg']}"


def _of_setting(problem: ErrorDetails, settings: type[BaseModel]) -> str:
    where, value = problem["loc"], problem["input"]
    if problem["type"] == "extra_forbidden":
        return f"{_name(where)}: no such setting; {_instead(where, settings)}"
    if isinstance(value, str | int | float):
        return f"{_name(where)}: got {repr(value)[:LONGEST_VALUE]}. {problem['msg']}"
    return _message(problem)


def _name(where: Sequence[int | str]) -> str:
    return ".".join(map(str, where)) or "body"


def _instead(where: Sequence[int | str], settings: type[BaseModel]) -> str:
    """What a setting that does not exist is most like, or all that its table has."""
    *table, key = where
    fields = sorted(_model_at(table, settings).model_fields)
    meant = difflib.get_close_matches(str(key), fields, n=1)
    return f"did you mean {_name([*table, *meant])}?" if meant else f"expected one of {', '.join(fields)}"


def _model_at(table: Sequence[int | str], settings: type[BaseModel]) -> type[BaseModel]:
    """The model of a table: [] is the whole file, ["rewards", 0] the first of its rewards."""
    for key in table:
        if isinstance(key, str) and key in settings.model_fields:
            settings = next(_models_in(settings.model_fields[key].annotation), settings)
    return settings


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
