"""An endpoint's words as one short line, without secrets: others than the reward's owner read them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, urlsplit

from lasro.service.error_text import one_line
from lasro.service.signing import SECRET_PREFIX
from lasro.wire import RewardSpec

REDACTED = "[redacted]"
LONGEST_ERROR = 300
SHORTEST_SECRET = 6
"""Header values with fewer characters, such as a version number, are not redacted."""
SECRET_NAME = r"(?:api[_-]?key|(?:access[_-]?)?token|secret|passw(?:or)?d|authorization|signature)"
NAMED_SECRET = rf"""({SECRET_NAME}(?:=|["']\s*:\s*["']))[^\s"'&]{{{SHORTEST_SECRET},}}"""
# Secrets of whomever, by their form: a server may quote what it calls itself.
FORMS = (
    (re.compile(r"://[^\s/@]+@"), f"://{REDACTED}@"),
    (re.compile(r"\b(bearer|basic)\s+(?=\S*[\d_=]|\S{20})[\w.~+/=-]{6,}", re.IGNORECASE), rf"\1 {REDACTED}"),
    (re.compile(r"\b(?:whsec_|sk-|hf_)[\w+/=-]{6,}"), REDACTED),
    (re.compile(NAMED_SECRET, re.IGNORECASE), rf"\1{REDACTED}"),
)


class Redactor:
    """Removes what the endpoint was sent to keep, and what looks like a secret; shortens to one line."""

    def __init__(self, spec: RewardSpec) -> None:
        self._secrets = sorted(set(_secrets(spec)), key=len, reverse=True)

    def __call__(self, text: str, longest: int = LONGEST_ERROR) -> str:
        # Twice: a secret may hold two blanks, and what is no letter may stand inside its echo.
        line = self._struck(one_line(self._struck(text)))
        for form, instead in FORMS:
            line = form.sub(instead, line)
        return line[:longest]

    def _struck(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, REDACTED)
        return text


def _secrets(spec: RewardSpec) -> Iterator[str]:
    if spec.secret:
        yield spec.secret
        yield spec.secret.removeprefix(SECRET_PREFIX)
    query = parse_qsl(urlsplit(spec.url).query)
    values = [value for name, value in query if re.search(SECRET_NAME, name, re.IGNORECASE)]
    for value in (*spec.headers.values(), *values):
        yield from (part for part in _parts(value) if len(part) >= SHORTEST_SECRET)


def _parts(value: str) -> Iterator[str]:
    """A header's value; of `Bearer TOKEN` the token too, of `Basic ...` the password."""
    yield value
    scheme, _, token = value.partition(" ")
    if scheme.lower() not in ("bearer", "basic", "token"):
        return
    yield token
    if scheme.lower() == "basic":
        try:
            yield base64.b64decode(token, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return
