"""Read a run's TOML file, with overrides from the command line.

config = load_config(Path("configs/demo.toml"), ["train.rounds=10"])
"""

from __future__ import annotations

import json
import logging
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lasro.config.base import Source
from lasro.config.run import RunSettings
from lasro.errors import ConfigError
from lasro.validation import explain

log = logging.getLogger("lasro")


def assign(tree: dict[str, Any], setting: str) -> None:
    """Apply one `a.b=value`; the value is TOML, or a plain string where it is not."""
    path, equals, text = setting.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"--set {setting}: expected KEY=VALUE, for example train.rounds=20")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, leaf = path.strip().split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {setting}: {parent} is not a table")
    tree[leaf] = value


def load_config(path: Path, settings: Sequence[str] = ()) -> RunSettings:
    """Read a run's TOML file and apply `--set` overrides; raises ConfigError.

    Relative paths inside it are taken from the folder of the file.
    """
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({error})") from error
    for setting in settings:
        assign(tree, setting)
    try:
        return RunSettings.model_validate(tree, context=Source(path.resolve().parent, log.warning))
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, RunSettings)}") from error


def flattened(tree: Mapping[str, Any], prefix: str = "", separator: str = ".") -> dict[str, Any]:
    """The leaves of nested tables by the names that lead there, joined: `train.rounds`."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        inner = isinstance(value, Mapping)
        found |= flattened(value, f"{prefix}{name}{separator}", separator) if inner else {f"{prefix}{name}": value}
    return found


def differing_keys(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the settings in which two dumped configurations differ."""
    keys = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            keys += differing_keys(a, b, f"{prefix}{key}.")
        elif json.dumps(a, sort_keys=True) != json.dumps(b, sort_keys=True):
            keys.append(f"{prefix}{key}")
    return keys
