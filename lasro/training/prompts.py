"""Prompt files: a prompt a line, JSONL, JSON, CSV or TSV, by the ending of the name. Data sets are read here too.

docs/prompts.md says what each looks like. What looks like another format than its name is refused: its brackets,
quotes and headers would become prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lasro.config.prompts import DatasetSettings
from lasro.errors import ConfigError
from lasro.training.dataset_prompts import DatasetRecord, Fits, read_dataset
from lasro.training.numbered_prompt import (
    NumberedPrompt,
    Reader,
    bad_line,
    numbered_prompt,
    preview,
    prompt_names,
    text_lines,
)
from lasro.training.prompt_json import is_json, read_json, read_jsonl
from lasro.training.prompt_table import read_csv, read_tsv

JSON_OBJECT = re.compile(r'\{\s*("|\}|$)')
JSON_ARRAY = re.compile(r'\[\s*($|\]|\{\s*"|"[^"]*"\s*(,|\]\s*$))')
MARKUP = re.compile(r"<(!doctype|html|\?xml)\b|<(\w+)\b[^>]*>(?s:.*)</\2>", re.IGNORECASE)
PYTHON_LITERAL = re.compile(r"\{\s*'[^']*'\s*:|\[\s*'[^']*'\s*(,|\]\s*$)")
LIST_ITEM = re.compile(r"([-*\u2022]|\d+[.)])\s")
QUOTED_ROW = re.compile(r'"([^"]|"")*"\s*(,?$|[,;\t]\S)')
SIGNATURES = {
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"PK\x03\x04": "a zip archive or a workbook; unpack it, or export it as CSV",
    b"PAR1": 'a Parquet table; name it as a data set, {dataset = "FILE"}, or export it as CSV',
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"%PDF-": "a PDF document; save its text, a prompt a line",
    b"{\\rtf": "rich text; save it as plain text",
    b"\x89PNG": "a PNG image; give a file of prompts",
    b"\xff\xd8\xff": "a JPEG image; give a file of prompts",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file by `git lfs pull`",
}
"""First bytes of what is no prompt file, and what to do about it."""
OTHER_FORMATS = (".yaml", ".yml", ".toml", ".xml", ".html", ".htm", ".py")


class Prompt(NamedTuple):
    """One prompt; `metadata` goes to the rewards untouched."""

    text: str
    metadata: Any = None


class PromptFile(NamedTuple):
    """The prompts of a file in its order, and the line on which each begins; of a data set, its row."""

    path: Path | str
    """For messages: the name of a data set is no path."""
    prompts: list[Prompt]
    lines: list[int]
    record: DatasetRecord | None = None
    """What was read of a data set; None for a file."""

    @property
    def texts(self) -> list[str]:
        """The prompts without their metadata."""
        return [prompt.text for prompt in self.prompts]


def read_prompts(source: Path | DatasetSettings, comments: bool = False) -> list[Prompt]:
    """All prompts of a file in its order, blank lines skipped; never empty. As `read_prompt_source`."""
    return read_prompt_source(source, comments).prompts


def read_prompt_source(source: Path | DatasetSettings, comments: bool = False, fits: Fits | None = None) -> PromptFile:
    """Read a file as `read_prompt_file`, or a data set, of which what does not fit is left out. Raises ConfigError."""
    if not isinstance(source, DatasetSettings):
        return read_prompt_file(source, comments)
    found, record = read_dataset(source, fits)
    return _prompt_file(record.name, found)._replace(record=record)


def read_prompt_file(path: Path, comments: bool = False) -> PromptFile:
    """Read a prompt file; with `comments`, lines of text and JSONL that begin with `#` are skipped.

    Raises ConfigError, as `FILE:LINE: ...` where a line is to blame.
    """
    text, ending = _read_text(path), path.suffix.lower()
    if ending in OTHER_FORMATS:
        raise ConfigError(f"{path}: got a name that ends in {ending}, expected {', '.join(['.txt', *READERS])}")
    found = list(READERS.get(ending, read_lines)(path, text, comments))
    if not found:
        raise ConfigError(f"{path}: got no prompt, expected at least one")
    return _prompt_file(path, found)


def _prompt_file(path: Path | str, found: Sequence[NumberedPrompt]) -> PromptFile:
    return PromptFile(path, [Prompt(each.text, each.metadata) for each in found], [each.line for each in found])


def _read_text(path: Path) -> str:
    """The file's text with line feeds as line ends; a byte order mark is dropped."""
    try:
        body = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such prompt file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read as a prompt file ({error.strerror})") from error
    for signature, problem in SIGNATURES.items():
        if body.startswith(signature):
            raise ConfigError(f"{path}: is {problem}")
    try:
        text = body.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        line = 1 + body.count(b"\n", 0, error.start)
        raise bad_line(path, line, f"byte {body[error.start]:#x} is not UTF-8; save the file as UTF-8") from error
    if "\0" in text:
        line = 1 + text.count("\n", 0, text.index("\0"))
        raise bad_line(path, line, "holds NUL, as binary files and UTF-16 do; save it as UTF-8 text")
    return text


def read_lines(path: Path, text: str, comments: bool) -> Iterator[NumberedPrompt]:
    """A prompt a line; JSONL where the first line is a JSON object."""
    lines = text_lines(text, comments)
    if lines and JSON_OBJECT.match(lines[0][1]):
        yield from read_jsonl(path, text, comments)
        return
    if lines and (problem := _other_format([line for _, line in lines])):
        raise bad_line(path, lines[0][0], problem)
    for number, line in lines:
        if JSON_OBJECT.match(line) and is_json(line):
            raise bad_line(path, number, "got a JSON object among lines of text, expected one format in a file")
        yield numbered_prompt(path, number, line)


def _other_format(lines: Sequence[str]) -> str | None:
    """What a file of lines is instead, and what to do; None for prompts, which may have commas, quotes, brackets."""
    first = lines[0]
    if MARKUP.match("\n".join(lines)):
        return "looks like a web page or XML, expected a prompt a line; save the text alone"
    if JSON_ARRAY.match(first) or (first.startswith("[") and is_json("\n".join(lines))):
        return "looks like a JSON array, expected a prompt a line; name the file .json"
    if PYTHON_LITERAL.match(first):
        return "looks like Python, with quotes that JSON does not have; write it by json.dump to a file named .json"
    if _is_header(first):
        return f"looks like the header of a table ({preview(first)}); name the file .csv or .tsv, or remove the line"
    if len(lines) > 1 and all(QUOTED_ROW.match(line) for line in lines):
        return "looks like CSV without a header, each line in quotes; name the file .csv and begin it with prompt,seed"
    if len(lines) > 1 and all("\t" in line for line in lines):
        return "looks like a table, with a tab in each line; name the file .tsv and begin it with a line of names"
    if len(lines) > 1 and all(LIST_ITEM.match(line) for line in lines):
        return f"looks like a list ({preview(first)}); leave out what stands before each prompt"
    return None


def _is_header(line: str) -> bool:
    cells = [cell.strip().strip('":') for cell in re.split(r"[,;\t|]", line)]
    return bool(prompt_names(cells)) and all(len(cell.split()) <= 2 for cell in cells)


READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
}
"""By the ending of the file's name; a file of any other name has a prompt a line."""
