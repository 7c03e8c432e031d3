"""Optional packages of the built-in rewards, imported when a reward first scores. Imports no torch."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from lasro.errors import ConfigError


def needed(module: str, extra: str) -> Any:
    """Import a module of the extra; raises ConfigError with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{_missing(module, extra)} ({error})") from error


def package_folder(package: str, extra: str) -> Path:
    """The folder of a package that is read for its files and not imported; raises ConfigError."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ConfigError(_missing(package, extra))
    return Path(found.submodule_search_locations[0])


def _missing(module: str, extra: str) -> str:
    return f"got no usable package {module.partition('.')[0]!r}: run pip install 'lasro[{extra}]'"
