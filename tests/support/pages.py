"""Pages of the documentation of which tests write parts: what they show is what happened.

A part stands between `<!-- NAME -->` and `<!-- /NAME -->`. `pytest TEST --write-docs` writes it anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PART = re.compile(r"<!-- ([a-z0-9-]+) -->\n(.*?)<!-- /\1 -->", re.S)


def check_page(name: str, parts: Mapping[str, str], write: bool) -> None:
    """Hold the parts of a page against what they should be, or write them."""
    path = DOCS / name
    text = path.read_text(encoding="utf-8")
    found = dict(PART.findall(text))
    assert set(found) == set(parts), f"{path} has other parts than the test makes"
    if write:
        path.write_text(PART.sub(lambda old: _marked(old[1], parts[old[1]]), text), encoding="utf-8")
        return
    for part, content in parts.items():
        assert found[part].strip() == content.strip(), (
            f"{path}: `{part}` is out of date; run this test with --write-docs"
        )


def _marked(part: str, content: str) -> str:
    return f"<!-- {part} -->\n\n{content.strip()}\n\n<!-- /{part} -->"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
