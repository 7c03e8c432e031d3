"""Prompt files."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lasro.errors import ConfigError
from lasro.training.prompts import Prompt, read_prompt_file, read_prompts

ANY = st.text(st.characters(exclude_categories=["Cs", "Cc"]))
TEXT = st.tuples(ANY, st.characters(categories=["L", "N", "P", "S"]), ANY).map("".join).map(str.strip)
"""Prompts that show something."""


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


GENEVAL = '{"tag": "counting", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}\n'
PARTI = 'Prompt\tCategory\tNote\nbond\tAbstract\tmany meanings\n"HA HA" on a red wall\tWriting\t\n'


@pytest.mark.parametrize(
    ("name", "text", "prompts"),
    [
        ("parti.tsv", PARTI, ["bond", '"HA HA" on a red wall']),
        (
            "drawbench.csv",
            'Prompts,Category\nA red car.,Colors\n"A cat, \n on a mat.",\n',
            ["A red car.", "A cat, \n on a mat."],
        ),
        ("hps.json", '[\n "a, b",\n "c"\n]', ["a, b", "c"]),
        ("compbench.txt", 'The red apple, on the left of "it"\n[[red]] car\n{red|blue} star\n["Open" sign]\n', None),
        ("PROMPTS.CSV", "\ufeffprompt;seed\r\na red disc, left;1\r\n;\r\n", ["a red disc, left"]),
        ("strings.jsonl", '"a disc"\n"a star"\n', ["a disc", "a star"]),
        ("mac.txt", "a disc\ra star\r", ["a disc", "a star"]),
        ("spaces.csv", 'seed, "prompt"\n1, "a disc, left"\n2, "a star"\n', ["a disc, left", "a star"]),
        ("lora.txt", "<lora:ink:1> a disc\n1. FC Union, a crest\n['Open' sign]\n", None),
        ("heart.txt", "\u2764\ufe0f\n", None),
        ("quoted.tsv", 'prompt\tn\n"a ""red"" disc"\t1\n', ['a "red" disc']),
    ],
)
def test_prompts_as_they_are_published(tmp_path: Path, name: str, text: str, prompts: list[str] | None) -> None:
    """Bug: headers, brackets and quotes of JSON and CSV files became prompts, and a run was paid for with them."""
    (tmp_path / name).write_bytes(text.encode())
    assert [prompt.text for prompt in read_prompts(tmp_path / name)] == (prompts or text.splitlines())


def test_further_keys_and_columns_become_metadata(tmp_path: Path) -> None:
    """Bug: a file of GenEval was refused for its `tag`, so that no reward could count the objects asked for."""
    bench = {"tag": "counting", "include": [{"class": "bench", "count": 1}]}
    assert read_prompts(write(tmp_path, "a.jsonl", GENEVAL)) == [Prompt("a photo of a bench", bench)]
    assert read_prompts(write(tmp_path, "a.json", f"[{GENEVAL}]")) == [Prompt("a photo of a bench", bench)]
    table = write(tmp_path, "a.csv", ",prompt,seed,\n0,a disc,07,\n")
    assert read_prompts(table) == [Prompt("a disc", {"column_1": "0", "seed": "07"})]
    joined = write(
        tmp_path, "b.jsonl", '{"prompt": "a", "metadata": {"x": 1}, "y": 2}\n{"prompt": "b", "metadata": [3]}'
    )
    assert read_prompts(joined) == [Prompt("a", {"x": 1, "y": 2}), Prompt("b", [3])]


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("p.txt", '[\n "a red circle",\n "a blue star"\n]', ":1: looks like a JSON array"),
        ("p.txt", '["a red circle", "a blue star"]', ":1: looks like a JSON array"),
        ("p.txt", '\nprompt,seed\n"a red circle, left",1', ":2: looks like the header of a table"),
        ("p.txt", '"a red circle, left",1\n"a star",2', ":1: looks like CSV without a header"),
        ("p.txt", '"a disc",\n"a star",', ":1: looks like CSV without a header"),
        ("p.txt", PARTI.partition("\n")[2], ":1: looks like a table"),
        ("p.txt", 'a disc\n{"prompt": "a star"}', ":2: got a JSON object among lines of text"),
        ("p.txt", "<!DOCTYPE html>\n<p>a disc", ":1: looks like a web page"),
        ("p.txt", "<prompts>\n<prompt>a disc</prompt>\n</prompts>", ":1: looks like a web page or XML"),
        ("p.txt", "{'prompt': 'a disc'}\n{'prompt': 'a star'}", ":1: looks like Python"),
        ("p.txt", "['a disc', 'a star']", ":1: looks like Python"),
        ("p.txt", "- a disc\n- a star", ":1: looks like a list"),
        ("p.txt", "1. a disc\n2) a star", ":1: looks like a list"),
        ("p.txt", "prompts:\n  - a disc", ":1: looks like the header of a table"),
        ("p.txt", "%PDF-1.7\n", ": is a PDF document"),
        ("p.txt", "{\\rtf1 a disc}", ": is rich text"),
        ("p.txt", "a disc\n\u200b\n", r":2: prompt: got '\u200b'"),
        ("p.txt", "a disc\n\u00ad\ufe0f\n", r":2: prompt: got"),
        ("p.txt", "a disc".encode("utf-16"), ": is UTF-16 text"),
        ("p.txt", "a disc\nb".encode("utf-16-le"), ":1: holds NUL"),
        ("p.txt", b"\x1f\x8b\x08\x00", ": is compressed by gzip"),
        ("p.txt", b"\x89PNG\r\n\x1a\n", ": is a PNG image"),
        ("p.txt", "a disc\ncaf\xe9".encode("latin-1"), ":2: byte 0xe9 is not UTF-8"),
        ("p.txt", "version https://git-lfs.github.com/spec/v1\n", ": is a Git LFS pointer"),
        ("p.yaml", "- a disc", ": got a name that ends in .yaml"),
        ("p.csv", "a disc, left\na star, right", ":1: got the columns"),
        ("p.csv", "prompt,Prompts\na,b", ":1: got the columns"),
        ("p.csv", "prompt,n,n\na,b,c", ":1: got two columns named"),
        ("p.csv", "prompt\nc\na disc, left of a star", ":3: got 2 cells, expected 1"),
        ("p.csv", 'prompt,n\n"a\nb",1\n,2', ":4: prompt: got ''"),
        ("p.csv", 'prompt,n\n"a\nb",1\n"c,2\n', ":4: not a row of a table"),
        ("p.csv", "prompt\tn\na\t1", ":1: its columns are separated by tabs"),
        ("p.tsv", "prompt,n\na,1", ":1: got the columns"),
        ("p.csv", "prompt\n\n", ": got no prompt"),
        ("p.json", '{"prompt": "a"}\n{"prompt": "b"}', ":1: expected a JSON array"),
        ("p.json", '\n{"animals": ["a"], "food": ["b"]}', ":2: got an object, expected a JSON array"),
        ("p.jsonl", '{"text": "a", "seed": 1}', ":1: prompt: Field required, got the keys 'text, seed'"),
        ("p.json", '["a",\n\n "b",\n]', ":4: not JSON"),
        ("p.json", '["a",\n "b"', ":2: not JSON"),
        ("p.json", '["a",\n ""]', ":2: prompt: got ''"),
        ("p.json", '["a"]\n["b"]', ":2: got more after the array"),
        ("p.json", '["a",\n{"prompt": "b", "x": 1e999}]', ":2: JSON that cannot be read"),
        ("p.json", "[" * 100_000, ":1: JSON that cannot be read"),
        ("p.json", '["a",\n"\\ud800"]', ":2: prompt: got"),
        ("p.jsonl", '["a"]', ":1: got '[\"a\"]', expected an object a line"),
        ("p.jsonl", "a disc", ":1: got 'a disc', expected an object a line"),
        ("p.jsonl", '{"prompt": "a"} {"prompt": "b"}', ":1: got '{"),
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}', ":1: JSON that cannot be read (the key 'prompt' stands twice"),
        ("p.jsonl", '{"prompt": "a", "metadata": [1], "x": 2}', ":1: metadata: got [1]"),
        ("p.jsonl", '{"prompt": "a", "metadata": {"x": 1}, "x": 2}', ":1: got 'x' both in metadata"),
    ],
)
def test_what_is_no_such_file_is_refused_by_line(tmp_path: Path, name: str, content: str | bytes, part: str) -> None:
    """Bug: a header, a bracket or an image was drawn and scored for hours; the line that said so had no number."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}{part}")
    assert len(str(caught.value)) < len(str(path)) + 250


def test_comments_are_prompts_unless_asked_for(tmp_path: Path) -> None:
    """Bug: headings of a hand-written list are drawn; and the opposite, `#1 fan` that is dropped without a word."""
    text = write(tmp_path, "a.txt", "# colours\na red disc\n  # more\n#1 fan\n")
    jsonl = write(tmp_path, "b.jsonl", '# colours\n{"prompt": "a disc"}\n')
    assert len(read_prompts(text)) == 4
    assert read_prompt_file(text, comments=True).lines == [2]
    assert read_prompts(jsonl, comments=True) == [Prompt("a disc")]


@given(st.lists(st.tuples(TEXT, ANY.map(str.strip)), min_size=1))
def test_tables_and_arrays_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    """Bug: commas, quotes and brackets inside a prompt cut it, or lines are counted wrong."""
    folder, table = tmp_path_factory.mktemp("prompts"), io.StringIO()
    csv.writer(table).writerows([("prompt", "note"), *rows])
    expected = [Prompt(text, {"note": note}) for text, note in rows]
    found = read_prompt_file(write(folder, "p.csv", table.getvalue()))
    assert (found.prompts, found.lines) == (expected, list(range(2, len(rows) + 2)))
    items = [{"prompt": text, "note": note} for text, note in rows]
    found = read_prompt_file(write(folder, "p.json", json.dumps(items, indent=1)))
    assert (found.prompts, found.lines) == (expected, list(range(2, 4 * len(rows) + 2, 4)))
