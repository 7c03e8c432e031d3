"""Prompts of data sets: which rows are taken, in which order, and what is said of the others."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lasro.config import DatasetSettings, load_config
from lasro.errors import ConfigError
from lasro.training.dataset_prompts import read_dataset
from lasro.training.prompts import Prompt, read_prompts

ROWS = [
    {"Prompt": "a red disc", "Category": "colours", "n": 1},
    {"Prompt": "two cats", "Category": "counting", "n": 2},
    {"Prompt": "a blue star", "Category": "colours", "n": 3},
    {"Prompt": "a red disc ", "Category": "colours", "n": 4},
    {"Prompt": None, "Category": "colours", "n": 5},
    {"Prompt": "three dogs", "Category": "counting", "n": 6},
]


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "prompts.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def settings(path: Path | str, **others: Any) -> DatasetSettings:
    return DatasetSettings(dataset=str(path), **others)


def texts(path: Path | str, **others: Any) -> list[str]:
    return [prompt.text for prompt in read_prompts(settings(path, **others))]


ALL = ["a red disc", "two cats", "a blue star", "three dogs"]


def test_a_prompt_is_taken_once_and_empty_rows_are_left_out(parquet: Path) -> None:
    """Bug: a preference data set has a row for each comparison, so that a few prompts were most of the training."""
    prompts, record = read_dataset(settings(parquet))
    assert [(each.line, each.text, each.metadata) for each in prompts] == [
        (1, "a red disc", None),
        (2, "two cats", None),
        (3, "a blue star", None),
        (6, "three dogs", None),
    ]
    assert (record.prompts, record.rows, record.repeated, record.empty, record.too_long) == (4, 6, 1, 1, 0)
    assert str(record) == f"4 prompts of {parquet} (train), out of 6 rows; left out: 1 repeated, 1 empty"


@pytest.mark.parametrize("name", ["p.csv", "p.tsv", "p.json", "p.jsonl", "p.txt", "folder"])
def test_files_of_all_formats_are_read_from_this_disk(tmp_path: Path, parquet: Path, name: str) -> None:
    """Bug: one format went to another's reader, "null" became an empty cell, or a copy was left in the hub's cache."""
    path, rows = tmp_path / name, [{"prompt": "a, b"}, {"prompt": "null"}]
    if name == "folder":
        path.mkdir()
        (path / "train.parquet").write_bytes(parquet.read_bytes())
        assert texts(path) == ALL
        return
    content = {
        "csv": 'prompt\n"a, b"\nnull\n',
        "tsv": "prompt\tx\na, b\t1\nnull\t2\n",
        "json": json.dumps(rows),
        "jsonl": "\n".join(map(json.dumps, rows)),
        "txt": "a, b\nnull\n",
    }
    path.write_text(content[path.suffix[1:]])
    assert texts(path, column="text" if name == "p.txt" else None) == ["a, b", "null"]


def test_json_keyed_by_id_is_rows(tmp_path: Path) -> None:
    """Bug: in MJHQ-30K's meta_data.json each key became a column, 30,000 of them and a single row."""
    rows = {"a1": {"category": "art", "prompt": "a red disc"}, "b2": {"category": "food", "prompt": "soup"}}
    (tmp_path / "meta_data.json").write_text(json.dumps(rows))
    found = read_prompts(settings(tmp_path / "meta_data.json", where={"category": "food"}, metadata=["category"]))
    assert found == [Prompt("soup", {"category": "food"})]


def test_rows_are_chosen_by_the_values_of_their_columns(parquet: Path) -> None:
    """Bug: a list of values meant all of them, or a filter on a column that is not there chose everything."""
    assert texts(parquet, where={"Category": "counting"}) == ["two cats", "three dogs"]
    assert texts(parquet, where={"n": [1, 3], "Category": "colours"}) == ["a red disc", "a blue star"]
    with pytest.raises(ConfigError, match=r"got no prompt, expected at least one; see to where and skip \(0 rows fit"):
        texts(parquet, where={"Category": "spatial"})
    with pytest.raises(ConfigError, match=r"got the column 'category', expected one of 'Prompt', 'Category', 'n'$"):
        texts(parquet, where={"category": "spatial"})


def test_class_labels_are_chosen_by_name(tmp_path: Path) -> None:
    """Bug: a label is a number in the file, and no row had the category that the hub's page shows."""
    import datasets  # here: it takes seconds, and each worker imports this file

    features = datasets.Features(
        {"prompts": datasets.Value("string"), "category": datasets.ClassLabel(names=["Colors", "Text"])}
    )
    rows = {"prompts": ["a sign", "a car"], "category": [1, 0]}
    pq.write_table(pa.Table.from_pydict(rows, schema=features.arrow_schema), tmp_path / "p.parquet")
    found = read_prompts(settings(tmp_path / "p.parquet", where={"category": "Text"}, metadata=["category"]))
    assert found == [Prompt("a sign", {"category": "Text"})]


def test_one_split_makes_disjoint_prompts_to_train_and_to_measure_on(parquet: Path) -> None:
    """Bug: what is measured on was trained on too, or all of it of the first category of a sorted data set."""
    assert texts(parquet, limit=1) == ["a red disc"]
    assert texts(parquet, skip=1, limit=2) == ["two cats", "a blue star"]
    shuffled = texts(parquet, shuffle=3)
    assert sorted(shuffled) == sorted(ALL)
    assert shuffled != ALL
    assert texts(parquet, shuffle=3, limit=1) + texts(parquet, shuffle=3, skip=1) == shuffled


def test_a_prompt_that_the_model_does_not_take_is_left_out_before_any_is_counted(parquet: Path) -> None:
    """Bug: one long prompt of a data set, which nobody can shorten, ended the run, or `limit` counted it."""
    asked: list[str] = []

    def fits(some: Sequence[str]) -> list[bool]:
        asked.extend(some)
        return ["cats" not in text for text in some]

    prompts, record = read_dataset(settings(parquet, limit=2), fits)
    assert [prompt.text for prompt in prompts] == ["a red disc", "a blue star"]
    assert record.too_long == 1
    assert asked == ALL
    with pytest.raises(ConfigError, match="4 rows fit, of which 4 are repeated, empty or too"):
        read_dataset(settings(parquet, where={"Category": "colours"}), lambda some: [False] * len(some))


def test_metadata_is_what_the_run_asks_for(tmp_path: Path, parquet: Path) -> None:
    """Bug: ids, addresses and images of a row went to the rewards, whose cache then knew no prompt again."""
    assert read_prompts(settings(parquet, limit=1)) == [Prompt("a red disc", None)]
    assert read_prompts(settings(parquet, metadata=["n", "Category"], limit=1)) == [
        Prompt("a red disc", {"n": 1, "Category": "colours"})
    ]
    geneval = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "two cats"}
    plain = {"tag": "single", "prompt": "a cat"}
    (tmp_path / "g.jsonl").write_text(f"{json.dumps(plain)}\n{json.dumps(geneval)}\n")
    assert read_prompts(settings(tmp_path / "g.jsonl", metadata=["include"])) == [
        Prompt("a cat", None),
        Prompt("two cats", {"include": [{"class": "cat", "count": 2}]}),
    ]
    pq.write_table(pa.Table.from_pylist([{"prompt": "a", "at": date(2024, 1, 2)}]), tmp_path / "d.parquet")
    with pytest.raises(ConfigError, match=r"d\.parquet \(train\):1: metadata: Object of type date is not JSON"):
        read_prompts(settings(tmp_path / "d.parquet", metadata=["at"]))


def test_the_column_of_the_prompts_is_found_or_asked_for(tmp_path: Path) -> None:
    """Bug: with two columns of text the wrong one was drawn; or numbers were."""
    pq.write_table(pa.Table.from_pylist([{"caption": "a cat", "id": 7}]), tmp_path / "p.parquet")
    with pytest.raises(ConfigError, match=r"column: got none, expected the one of the prompts, of 'caption, id'$"):
        texts(tmp_path / "p.parquet")
    assert texts(tmp_path / "p.parquet", column="caption") == ["a cat"]
    with pytest.raises(ConfigError, match=r"\(train\):1: column 'id': got 7, expected text; name the column"):
        texts(tmp_path / "p.parquet", column="id")


def test_a_split_is_named_where_there_are_several(tmp_path: Path) -> None:
    """Bug: the first split was taken without a word, in most data sets the one that is trained on."""
    for name, text in (("train", "a cat"), ("test", "a dog")):
        pq.write_table(pa.Table.from_pylist([{"prompt": text}]), tmp_path / f"{name}.parquet")
    with pytest.raises(ConfigError, match="split: got none, expected one of train, test; skip and limit take a part"):
        texts(tmp_path)
    with pytest.raises(ConfigError, match=r"split: got 'train\[:1\]', expected one of train, test"):
        texts(tmp_path, split="train[:1]")
    assert texts(tmp_path, split="test") == ["a dog"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dataset": "partiprompts"}, "dataset: got 'partiprompts', .* did you mean parti-prompts\\?$"),
        ({"dataset": "cats"}, "expected a file, a folder, a hub id such as owner/name; or one of parti-prompts, "),
        ({"dataset": "./no-such-folder"}, "no-such-folder: no such file or folder of prompts$"),
        ({"dataset": "data/prompts.parquet"}, r"data/prompts\.parquet: no such file or folder of prompts$"),
        ({"dataset": "run.toml"}, r"run\.toml: got a name that ends in '\.toml', expected \.parquet, \.csv"),
        ({"dataset": "p.csv", "revision": "main"}, r"p\.csv: revision is of hub ids, and this is on the disk"),
        ({"dataset": "p.csv", "subset": "x"}, r"p\.csv: got subset 'x', but a file has none"),
        ({"dataset": "broken.parquet"}, r"broken\.parquet: cannot be read as a data set \(.*[Pp]arquet"),
        ({"dataset": "drawbench", "column": "x"}, r"^sayakpaul/drawbench: cannot be read .* the hub cannot be reached"),
        ({"dataset": "empty.csv"}, r"empty\.csv: cannot be read as a data set \("),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], message: str
) -> None:
    """Bug: a misspelt name was looked for on the hub, and a broken file was a traceback through three libraries."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drawbench").mkdir()
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    for name, content in (("run.toml", ""), ("p.csv", "prompt\na\n"), ("broken.parquet", "x"), ("empty.csv", "")):
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_prompts(DatasetSettings(**given))
    assert "\n" not in str(caught.value)


def test_without_the_library_the_message_has_the_command(
    parquet: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Bug: ModuleNotFoundError, or an AttributeError where a folder named datasets stands beside the run's file."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ConfigError, match=r"prompts\.parquet: a data set is read by .*; pip install 'lasro\[datasets\]'"
    ):
        texts(parquet)
    monkeypatch.delitem(sys.modules, "datasets")
    (tmp_path / "datasets").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match=r"pip install 'lasro\[datasets\]'"):
        texts(parquet)


def test_a_table_of_settings_names_a_data_set(tmp_path: Path) -> None:
    """Bug: the table was taken for a path, or a wrong key in it was reported under a name that nobody wrote."""
    run, table = tmp_path / "run.toml", '{dataset = "p.parquet", where = {n = [1, 2]}, limit = 3}'
    run.write_text(f'name = "x"\n[prompts]\ntrain = {table}\nheld_out = "h.txt"\n[[rewards]]\nname = "r"\n')
    (tmp_path / "p.parquet").touch()
    config = load_config(run)
    assert config.prompts.train == settings(tmp_path / "p.parquet", where={"n": [1, 2]}, limit=3)
    assert config.prompts.held_out == tmp_path / "h.txt"
    assert type(config).model_validate(config.model_dump(mode="json")).prompts == config.prompts, (
        "as config.json has it"
    )
    (tmp_path / "p.parquet").unlink()
    assert load_config(run).prompts == config.prompts, "a run is resumed without its data set"
    for setting, message in (
        ('prompts.drift={dataset="a/b",limt=3}', r"prompts\.drift\.limt: no such .* mean prompts\.drift\.limit\?$"),
        ("prompts.train.limit=0", r"run\.toml: prompts\.train\.limit: got 0\."),
        ('prompts.held_out={split="test"}', r"run\.toml: prompts\.held_out\.dataset: Field required$"),
        ("prompts.train.streaming=true", ""),
        ('prompts.drift={dataset="a/b",streaming=true}', r"prompts\.drift: streaming needs limit and no shuffle"),
        ("prompts.train.where={n={m=1}}", r"prompts\.train\.where: n: got \{'m': 1\}, expected text, a number"),
        ('prompts.train.metadata=["n","n"]', r"prompts\.train\.metadata: got \['n', 'n'\], expected each column once"),
    ):
        if message:
            with pytest.raises(ConfigError, match=message):
                load_config(run, [setting])
        else:
            load_config(run, [setting])
