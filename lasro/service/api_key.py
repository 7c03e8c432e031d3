"""The key of the services, which both sides read from LASRO_API_KEY."""

from __future__ import annotations

import os
import re

from lasro.errors import ConfigError

VARIABLE = "LASRO_API_KEY"
API_KEY = re.compile(r"[\x21-\x7e]{1,4096}")


def checked_api_key(text: str) -> str:
    """An API key without the blanks and line breaks around it that files bring; raises ConfigError, without the key.

    A blank one would let in everybody who sends a blank one: it is no key, and no way to say that there is none.
    """
    key = text.strip()
    if not key:
        raise ConfigError(f"{VARIABLE}: got a blank one, expected a key; unset it to go without")
    if not API_KEY.fullmatch(key):
        raise ConfigError(f"{VARIABLE}: expected at most 4096 letters, digits and signs of ASCII, without blanks")
    return key


def api_key_from_environment() -> str | None:
    """None where the variable is not set; raises ConfigError for one that is no key."""
    text = os.environ.get(VARIABLE)
    return None if text is None else checked_api_key(text)
