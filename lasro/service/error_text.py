"""What a server says of its own failure, found in the body of its reply: pure, uncut, secrets and all."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from typing import Any

KEYS = ("detail", "message", "error_description", "error", "reason", "errors", "msg", "title")
"""Where servers write it, the most telling first: Spring's `error` only repeats the status, as does a `title`."""
MARKUP_TEXT = re.compile(r"<(title|message)\b[^<>]*>([^<]*)<", re.IGNORECASE)
MOST_ENTRIES, MOST_LEVELS = 3, 4
LONGEST_TEXT = 20_000
"""More than is ever shown: secrets, which may be long, are looked for before a text is cut short."""


def one_line(text: str) -> str:
    """`text` with single blanks for line breaks, control and invisible characters."""
    shown = "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in text[:LONGEST_TEXT])
    return " ".join(shown.split())


def error_of_body(body: bytes) -> str:
    """The message in an error's body: JSON's, HTML's title, or the telling line of a text; "" where there is none."""
    text = body.decode("utf-8", "replace").strip()
    if "\0" in text:  # an image, a pickle
        return ""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        # Not by the content type: Flask calls every text HTML.
        return one_line(_of_markup(text) if text.startswith("<") else _telling_line(text))
    return error_of_json(value) or ("" if value in (None, {}, []) else one_line(text))


def error_of_json(value: Any) -> str:
    """The message in a JSON error, such as {"error": {"message": ...}} or FastAPI's list of misfits; "" without one."""
    return one_line(_message(value, MOST_LEVELS))


def _message(value: Any, levels: int) -> str:
    if levels == 0:
        return ""
    match value:
        case str():
            return value.strip()
        case list():
            return "; ".join(filter(None, (_message(entry, levels - 1) for entry in value[:MOST_ENTRIES])))
        case {"loc": list(place), "msg": str(message)}:
            return f"{'.'.join(map(str, place))}: {message}"
        case dict():
            fields = {key.lower(): entry for key, entry in value.items() if isinstance(key, str)}
            return next(filter(None, (_message(fields.get(key), levels - 1) for key in KEYS)), "")
    return ""


def _of_markup(text: str) -> str:
    found = MARKUP_TEXT.search(text)
    return html.unescape(found[2]).strip() if found else ""


def _telling_line(text: str) -> str:
    """The first line; of a Python traceback the last, which names the exception."""
    lines = text.splitlines() or [""]
    return lines[-1 if lines[0].startswith("Traceback (most recent call last)") else 0]
