"""Prompt files: one prompt a line, or JSONL lines `{"prompt": TEXT, "metadata": ANYTHING}`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lasro.errors import ConfigError
from lasro.validation import explain


class Prompt(NamedTuple):
    """One prompt; `metadata` goes to the rewards untouched."""

    text: str
    metadata: Any = None


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field(pattern=r"\S")
    metadata: Any = None


def read_prompts(path: Path) -> list[Prompt]:
    """All prompts of a file in its order, blank lines skipped; never empty.

    JSONL where the name ends in `.jsonl` or the first line is an object; raises ConfigError with file and line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such prompt file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    # Not splitlines(): a prompt may hold U+2028 and the like, which end no line of a file.
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise ConfigError(f"{path}: got no prompt, expected at least one line")
    if path.suffix == ".jsonl" or lines[0][1].startswith("{"):
        return [_parse(path, number, line) for number, line in lines]
    return [Prompt(line) for _, line in lines]


def _parse(path: Path, number: int, line: str) -> Prompt:
    try:
        parsed = _Line.model_validate_json(line)
    except ValidationError as error:
        raise ConfigError(f'{path}:{number}: {explain(error)}; expected {{"prompt": TEXT, "metadata": ...}}') from error
    return Prompt(parsed.prompt.strip(), parsed.metadata)
