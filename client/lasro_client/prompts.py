"""Prompt files: one prompt a line, or JSONL lines `{"prompt": TEXT, "metadata": ANYTHING, "contrast": [...]}`.

Prompts that differ only in what the reward shall tell apart are a contrast set (Gardner et al., arXiv 2004.02709):
"a red star and a blue ring", "a blue star and a red ring". In training, the samples of each are ranked under all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lasro.errors import ConfigError
from lasro.wire import explain


class Prompt(NamedTuple):
    """One prompt; `metadata` goes to the rewards untouched, `contrast` are the others of its contrast set."""

    text: str
    metadata: Any = None
    contrast: tuple[Prompt, ...] = ()

    @property
    def contrast_set(self) -> tuple[Prompt, ...]:
        """This prompt and its contrast, each without one of its own."""
        return self._replace(contrast=()), *self.contrast


class _Member(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field(pattern=r"\S")
    metadata: Any = None


class _Line(_Member):
    contrast: list[_Member] = []


def every_prompt(prompts: list[Prompt]) -> list[Prompt]:
    """All members of their contrast sets, in order."""
    return [member for prompt in prompts for member in prompt.contrast_set]


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
        expected = '{"prompt": TEXT, "metadata": ..., "contrast": [{"prompt": TEXT, "metadata": ...}]}'
        raise ConfigError(f"{path}:{number}: {explain(error)}; expected {expected}") from error
    contrast = tuple(Prompt(member.prompt.strip(), member.metadata) for member in parsed.contrast)
    return Prompt(parsed.prompt.strip(), parsed.metadata, contrast)
