"""A path into a JSON reply: `scores`, `data[*].score`, `result[0]["my key"]`, `[*]`.

Names are led in by a dot but for the first, `[0]` takes one entry of a list, `["..."]` a name of any kind and `[*]`,
once at most, each entry of a list. Nothing is filtered: an entry that lacks the field is reported, or None, and
no later entry takes its place.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Any

from lasro.errors import WireError


class Every(Enum):
    ENTRY = "[*]"


Step = str | int | Every
STEP = re.compile(r'\.?([A-Za-z_][A-Za-z0-9_-]*)|\[(?:(\d{1,6})|(\*)|"([^"\\]+)")\]')
_ABSENT = object()


def parse_path(text: str) -> tuple[Step, ...]:
    """The steps of a path; raises ValueError, for pydantic to report."""
    steps: list[Step] = []
    position = 0
    while position < len(text):
        found = STEP.match(text, position)
        # The first name has no dot before it, the later ones have.
        if found is None or (found[1] is not None and text[position].startswith(".") != bool(steps)):
            break
        name, index, every, quoted = found.groups()
        steps.append(Every.ENTRY if every else int(index) if index else name or quoted)
        position = found.end()
    if position < len(text) or not steps or steps.count(Every.ENTRY) > 1:
        raise ValueError(f'got {text[:60]!r}, expected a path like scores, data[*].score or result[0]["my key"]')
    return tuple(steps)


def select(steps: tuple[Step, ...], value: Any, where: str = "reply", optional: bool = False) -> Any:
    """What lies at the end of the path; a list where the path has `[*]`.

    What is absent is None where `optional`, else it raises WireError naming the place.
    """
    for position, step in enumerate(steps):
        if value is None and optional:
            return None
        if step is Every.ENTRY:
            if not isinstance(value, list):
                raise WireError(f"{where}: got {type(value).__name__}, expected a list")
            rest = steps[position + 1 :]
            return [select(rest, entry, f"{where}[{index}]", optional) for index, entry in enumerate(value)]
        below = f"{where}[{step}]" if isinstance(step, int) else f"{where}.{step[:40]}"
        value = _entry(value, step, below)
        if value is _ABSENT:
            if optional:
                return None
            raise WireError(f"{below}: got nothing there, expected what mapping names")
        where = below
    return value


def _entry(value: Any, step: str | int, below: str) -> Any:
    if isinstance(step, int):
        if not isinstance(value, list):
            raise WireError(f"{below}: got {type(value).__name__} around it, expected a list")
        return value[step] if step < len(value) else _ABSENT
    if not isinstance(value, dict):
        raise WireError(f"{below}: got {type(value).__name__} around it, expected an object")
    return value.get(step, _ABSENT)
