"""Where LaSRO keeps what it can compute again: the user's cache folder, or LASRO_CACHE_DIR. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NamedTuple

from lasro.errors import ConfigError

FOLDER_VARIABLE, BYTES_VARIABLE = "LASRO_CACHE_DIR", "LASRO_CACHE_BYTES"
DEFAULT_BYTES = 4 << 30


class CacheFolder(NamedTuple):
    """A folder, which need not be there yet, and how many bytes may lie in it."""

    path: Path
    max_bytes: int


def cache_folder() -> CacheFolder | None:
    """As LASRO_CACHE_DIR and LASRO_CACHE_BYTES say; None where there is to be no cache: 0 bytes, or no home.

    Raises ConfigError for a number of bytes that is none.
    """
    given = os.environ.get(BYTES_VARIABLE) or str(DEFAULT_BYTES)
    if not (given.isascii() and given.isdigit()):
        raise ConfigError(f"{BYTES_VARIABLE}: got {given[:40]!r}, expected a whole number of bytes; 0 for no cache")
    path = _path()
    return None if path is None or int(given) == 0 else CacheFolder(path, int(given))


def _path() -> Path | None:
    if folder := os.environ.get(FOLDER_VARIABLE):
        return Path(os.path.expanduser(folder)).absolute()
    if root := os.environ.get("XDG_CACHE_HOME"):
        return Path(root).absolute() / "lasro"
    home = Path(os.path.expanduser("~"))
    if not home.is_absolute():  # a user without a home, as in some containers
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "lasro"
