"""What an analysis has measured so far, in a file: after Ctrl-C the same command goes on from there.

with Measured(folder, about) as measured:
    for index in range(100):
        values = measured(f"prompt {index}", partial(measure, index))
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lasro.files import storage_errors, write_atomically
from lasro_client.analysis.subject import BASE, Subject
from lasro_client.evaluation.score_prompts import Progress

FILE = "measured.jsonl"


class Measured:
    """Values by name in `folder`/measured.jsonl, behind a line that says of what; another file is begun again.

    The file is removed at the end, unless an exception, such as Ctrl-C, ends the block.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self._path, self._about = folder / FILE, json.loads(json.dumps(about))
        self._values: dict[str, Any] = {}

    def __enter__(self) -> Self:
        lines = _whole_lines(self._path)
        if lines[:1] == [self._about]:
            self._values = dict(lines[1:])
        write_atomically(self._path, b"".join(map(_line, [self._about, *self._values.items()])))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:
            self._path.unlink(missing_ok=True)

    def __call__(self, name: str, measure: Callable[[], Any]) -> Any:
        """The value of that name, measured where no earlier call has; of what JSON can hold."""
        if name not in self._values:
            value = measure()
            with storage_errors(self._path), self._path.open("ab") as file:
                file.write(_line((name, value)))
            self._values[name] = value
        return self._values[name]


def measure_prompts(
    subject: Subject, out: Path, about: dict[str, Any], measure: Callable[[bool, int], Any], progress: Progress
) -> dict[str, list[Any]]:
    """By policy, what `measure` says of each prompt, given whether the base is meant and the prompt's index."""
    units = [(policy, index) for policy in subject.policies for index in range(len(subject.prompts))]
    found: dict[str, list[Any]] = {policy: [] for policy in subject.policies}
    with Measured(out, about) as measured:
        for done, (policy, index) in enumerate(units, 1):
            found[policy].append(measured(f"{policy} {index}", partial(measure, policy == BASE, index)))
            progress(done, len(units))
    return found


def _line(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"


def _whole_lines(path: Path) -> list[Any]:
    """Up to the first that is cut short; none where there is no file."""
    found: list[Any] = []
    with storage_errors(path):
        content = path.read_bytes() if path.exists() else b""
    for line in content.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
