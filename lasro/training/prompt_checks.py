"""What is wrong with prompts, found before anything starts: by the tokenizers alone, no weights are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgpack

from lasro.config import ModelSettings
from lasro.errors import PromptTooLongError
from lasro.models.registry import load_prompt_tokens
from lasro.training.dataset_prompts import Fits
from lasro.training.numbered_prompt import bad_line, preview
from lasro.training.prompts import PromptFile
from lasro.validation import one_line

MOST_LINES = 5


def check_prompts(files: Sequence[PromptFile], model: ModelSettings) -> list[str]:
    """Raise for prompts that the model or a reward cannot take; returns what the user should know of the others.

    Raises PromptTooLongError, as `FILE:LINE: ...` with the next few such lines, ConfigError for metadata that cannot
    be sent, and ModelError.
    """
    for file in files:
        _check_metadata(file)
    check_lengths(files, model)
    return [note for file in files for note in _notes(file)]


def fitting(model: ModelSettings) -> Fits | None:
    """What tells which prompts of a data set the model takes; None for a family that cannot tell. Raises ModelError."""
    tokens = load_prompt_tokens(model)
    if tokens is None:
        return None

    def fits(texts: Sequence[str]) -> Sequence[bool]:
        long = {each.place for each in tokens.too_long(texts)}
        return [place not in long for place in range(len(texts))]

    return fits


def shared_prompts(file: PromptFile, train: PromptFile) -> list[str]:
    """A warning where prompts that are only measured on are trained on, too; empty where there are none."""
    trained = set(train.texts)
    shared = [(line, text) for line, text in zip(file.lines, file.texts, strict=True) if text in trained]
    if not shared:
        return []
    line, text = shared[0]
    where = f"{file.path}:{line}: {len(shared)} of {len(file.lines)} prompts stand in {train.path} too"
    return [f"{where}, such as {preview(text)}; they are trained on, so that a gain on them says little of others"]


def check_lengths(files: Sequence[PromptFile], model: ModelSettings) -> None:
    """Raise PromptTooLongError for prompts that the model cannot take, as `check_prompts` does; ModelError."""
    tokens = load_prompt_tokens(model)
    if tokens is None:  # a family that cannot tell; its `embed` refuses them
        return
    found: list[tuple[str, str, int, int]] = []
    for file in files:
        texts = list(dict.fromkeys(file.texts))
        long = {texts[each.place]: each for each in tokens.too_long(texts)}
        for line, text in zip(file.lines, file.texts, strict=True):
            if text in long:
                found.append((f"{file.path}:{line}", text, long[text].tokens, long[text].limit))
    if found:
        where, text, count, limit = found[0]
        problem = f"{where}: got {count} tokens, expected at most {limit} ({preview(text)}); shorten it"
        raise PromptTooLongError(problem + _others([f"{where} ({count})" for where, _, count, _ in found[1:]]))


def _others(places: Sequence[str]) -> str:
    if not places:
        return ""
    more = f" and {len(places) - MOST_LINES} more" if len(places) > MOST_LINES else ""
    return f", and {', '.join(places[:MOST_LINES])}{more}"


def _check_metadata(file: PromptFile) -> None:
    for line, prompt in zip(file.lines, file.prompts, strict=True):
        try:
            msgpack.packb(prompt.metadata)
        except (ValueError, OverflowError) as error:
            problem = f"metadata: {one_line(str(error))[:60]}, expected what msgpack holds, integers of 64 bits"
            raise bad_line(file.path, line, problem) from error


def _notes(file: PromptFile) -> list[str]:
    notes, counts, line_of = [], Counter(file.texts), dict(zip(reversed(file.texts), reversed(file.lines), strict=True))
    if file.record is not None:
        notes.append(str(file.record))
    repeated = [text for text, count in counts.items() if count > 1]
    if repeated:
        text = repeated[0]
        where = f"{file.path}:{line_of[text]}: {len(repeated)} of the prompts stand in the file more than once"
        notes.append(f"{where}, such as {preview(text)}; each time counts")
    commented = [text for text in counts if text.startswith("# ")]
    if commented and file.record is None:
        where = f"{file.path}:{line_of[commented[0]]}: {preview(commented[0])} is taken as a prompt"
        notes.append(f"{where}; lines that begin with # are left out by prompts.comments or --comments")
    return notes
