"""Redis URLs: what redis-py would misread is refused before it sees it, and no message shows a password."""

from __future__ import annotations

import re

from lasro.errors import ConfigError

SCHEMES = ("redis", "rediss", "unix")
PARTS = re.compile(r"(?P<scheme>[a-z]+)://(?P<authority>[^/?#]*)(?P<rest>.*)", re.DOTALL)
ENCODED = {"/": "%2F", "#": "%23", "?": "%3F", "[": "%5B", "]": "%5D"}
DATABASE = re.compile(r"/?|/[0-9]+/?")
PORT = re.compile(r"[0-9]{1,5}")


def check_url(url: str | None) -> str:
    """The URL itself; raises ConfigError for none and for one that would be read otherwise than it was meant."""
    if not url:
        raise ConfigError("no Redis given; set LASRO_REDIS_URL to redis://, rediss:// or unix://")
    found = PARTS.fullmatch(url)
    if found is None or found["scheme"] not in SCHEMES:
        raise _misread("a URL of another kind", "it begins with redis://, rediss:// or unix://")
    authority, rest, is_socket = found["authority"], found["rest"], found["scheme"] == "unix"
    user, _, address = authority.rpartition("@")
    if any(letter in user for letter in "[]") or ("@" in rest and not (is_socket and not authority)):
        codes = ", ".join(f"{letter} as {code}" for letter, code in ENCODED.items())
        raise _misread(
            "one of / # ? [ ] before an @", f"these are percent-encoded in a name or password: {codes}, and an @ as %40"
        )
    if not is_socket:
        _check_address(address, rest)
    return url


def _check_address(address: str, rest: str) -> None:
    """Raise ConfigError for a port or a database that is none; redis-py shows the one and takes 0 for the other."""
    port = address.rpartition("]")[2].partition(":")[2]
    if port and not (PORT.fullmatch(port) and int(port) <= 65535):
        raise _misread("a port that is no number", "HOST:PORT follows the last @, and a password stands before it")
    if not DATABASE.fullmatch(re.split("[?#]", rest)[0]):
        raise _misread("a path that is no number", "after HOST:PORT comes nothing, or / and the number of a database")


def _misread(got: str, expected: str) -> ConfigError:
    return ConfigError(f"LASRO_REDIS_URL: got {got} (not shown, it may hold a password); {expected}")


def without_password(url: str) -> str:
    """A Redis URL for messages and logs: no name, no password, and nothing of what follows a ?, such as a key file."""
    check_url(url)
    return re.sub(r"//[^/?#]*@", "//", re.split("[?#]", url)[0])
