"""Prompt files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasro.errors import ConfigError
from lasro.training.prompts import Prompt, read_prompts

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).map(str.strip).filter(bool)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_text_lines(tmp_path: Path) -> None:
    """A blank line or a Windows line end became a prompt of its own."""
    path = write(tmp_path, "prompts.txt", "a red disc \r\n\n  a blue star\n")
    assert read_prompts(path) == [Prompt("a red disc"), Prompt("a blue star")]


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.txt"])
def test_jsonl_keeps_metadata(tmp_path: Path, name: str) -> None:
    """JSONL lines were used as literal prompts, or metadata was dropped."""
    path = write(tmp_path, name, '{"prompt": "a disc", "metadata": {"tag": [1, null]}}\n\n{"prompt": "b"}\n')
    assert read_prompts(path) == [Prompt("a disc", {"tag": [1, None]}), Prompt("b", None)]


@given(st.lists(st.tuples(TEXT, st.none() | st.integers() | st.text()), min_size=1))
def test_jsonl_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, object]]) -> None:
    """Unicode line separators inside a prompt split it in two."""
    text = "\n".join(json.dumps({"prompt": p, "metadata": m}, ensure_ascii=False) for p, m in rows)
    path = write(tmp_path_factory.mktemp("prompts"), "p.jsonl", text)
    assert read_prompts(path) == [Prompt(p, m) for p, m in rows]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"prompt": "a"}\n{"promt": "b"}', ":2: prompt: Field required"),
        ('{"prompt": "a"}\n\nplain words', ":3: "),
        ('{"prompt": " "}', ":1: prompt"),
        ('{"prompt": 7}', ":1: prompt"),
        ("\n \n", "got no prompt"),
    ],
)
def test_bad_files_name_file_and_line(tmp_path: Path, text: str, part: str) -> None:
    """A bad line was skipped, or reported without saying where it stands."""
    path = write(tmp_path, "bad.jsonl", text)
    with pytest.raises(ConfigError) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    """A missing or binary file ended in a traceback."""
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.txt", binary, tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            read_prompts(path)
