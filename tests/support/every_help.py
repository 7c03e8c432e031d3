"""`--help` of the command line and of every command in it, in one process: `python every_help.py`.

Prints one line of JSON: `helps` by command, the `modules` imported for them, the `file` of the package, and the `path`.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import typer.main

import lasro
from lasro_client.cli.main import app


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The arguments that lead to each command, groups included, the whole command line first."""
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from walk(inner, (*path, name))


def main() -> None:
    command = typer.main.get_command(app)
    helps: dict[str, str] = {}
    for path in walk(command):
        printed = io.StringIO()
        with redirect_stdout(printed):
            status = command.main([*path, "--help"], "lasro", standalone_mode=False)
        assert not status, f"{' '.join(path)} --help: got exit status {status}, expected 0"
        helps[" ".join(path)] = printed.getvalue()
    print(json.dumps({"helps": helps, "modules": sorted(sys.modules), "file": lasro.__file__, "path": sys.path}))


if __name__ == "__main__":
    main()
