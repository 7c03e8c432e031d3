"""Reading a reward's `mapping`: each protocol says what it takes as a pydantic model, all else is refused."""

from __future__ import annotations

import json
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from lasro.errors import ConfigError
from lasro_reward_api.protocols.base import Settings


def _finite_json(value: JsonValue) -> JsonValue:
    try:
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"got what JSON cannot carry ({error}), expected finite numbers and little nesting") from error
    return value


Json = Annotated[JsonValue, AfterValidator(_finite_json)]
Text = Annotated[str, Field(min_length=1)]


class Options(BaseModel):
    """What one protocol takes as `mapping`: nothing unknown, nothing coerced."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


O = TypeVar("O", bound=Options)


def parsed(kind: type[O], settings: Settings) -> O:
    """`settings` as `kind`; raises ConfigError naming the first few that do not fit."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        problems = [format_error(kind, problem) for problem in error.errors(include_url=False, include_context=False)]
        # A key may hold line breaks, a message not.
        raise ConfigError(" ".join("; ".join(problems[:3]).split())) from error


def format_error(kind: type[Options], problem: Any) -> str:
    """One of pydantic's errors as `where: got, expected`."""
    where = ".".join(["mapping", *(str(part)[:40] for part in problem["loc"])])
    expected = problem["msg"].removeprefix("Input should be ").removeprefix("input was not ")
    match problem["type"]:
        case "extra_forbidden" if len(problem["loc"]) == 1:
            return f"{where}: got an unknown setting, expected only {', '.join(kind.model_fields)}"
        case "extra_forbidden":
            return f"{where}: got an unknown setting, expected it left out"
        case "missing":
            return f"{where}: got nothing, expected a value"
        case "value_error":
            # A check of the whole names its setting itself.
            return where + (": " if problem["loc"] else ".") + expected.removeprefix("Value error, ")
        case "string_pattern_mismatch":
            expected = expected.replace("String should match pattern", "text that matches")
    return f"{where}: got {_shown(problem['input'])}, expected {expected}"


def _shown(value: object) -> str:
    """A scalar, cut; only the type of what may be large."""
    return repr(value)[:60] if value is None or isinstance(value, bool | int | float | str) else type(value).__name__
