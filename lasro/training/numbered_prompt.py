"""What all formats of prompt files share: a prompt with its line, and what is said about a bad one."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lasro.errors import ConfigError

PROMPT_NAMES = ("prompt", "prompts")
"""What the key or column of the prompts is called, in any case."""
COMMENT = "#"
LONGEST_PREVIEW = 60
INVISIBLE = ("Cc", "Cf", "Mn", "Zs", "Zl", "Zp")
"""Unicode's categories of what shows nothing alone: blanks, controls, zero-width characters, variation selectors."""


class NumberedPrompt(NamedTuple):
    """A prompt as it stands in a file; `line` is where it begins, from 1."""

    line: int
    text: str
    metadata: Any


Reader = Callable[[Path, str, bool], Iterator[NumberedPrompt]]
"""Reads a file's text, whose lines end in line feeds. The path is for messages; the flag says whether lines that begin
with `#` are comments. Raises ConfigError as `FILE:LINE: ...`."""


def bad_line(path: Path | str, line: int, problem: str) -> ConfigError:
    """What is wrong with a line of a prompt file, or a row of a data set of that name."""
    return ConfigError(f"{path}:{line}: {problem}")


def preview(value: object) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= LONGEST_PREVIEW else f"{text[: LONGEST_PREVIEW - 3]}..."


def prompt_names(names: Iterable[str]) -> list[str]:
    """Those among the names of keys or columns that stand for the prompt."""
    return [name for name in names if name.strip().lower() in PROMPT_NAMES]


def text_lines(text: str, comments: bool) -> list[tuple[int, str]]:
    """Lines with something on them, stripped, and their numbers."""
    # Not splitlines(): a prompt may hold U+2028 and the like, which end no line of a file.
    lines = [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1)]
    return [(number, line) for number, line in lines if line and not (comments and line.startswith(COMMENT))]


def shows_nothing(text: str) -> bool:
    """Whether a prompt is empty, or all of its characters are invisible."""
    return all(unicodedata.category(character) in INVISIBLE for character in text)


def numbered_prompt(path: Path | str, line: int, text: str, metadata: Any = None) -> NumberedPrompt:
    """The prompt, stripped; raises ConfigError for one that shows nothing, or that UTF-8 cannot hold."""
    if shows_nothing(text):
        raise bad_line(path, line, f"prompt: got {preview(text)}, expected words; fill it in or remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise bad_line(path, line, f"prompt: got {preview(text)}, expected whole characters, not surrogates") from error
    return NumberedPrompt(line, text.strip(), metadata)
