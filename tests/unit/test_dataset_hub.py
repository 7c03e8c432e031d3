"""Data sets of the hub, read over HTTP from a small one on loopback, then from the cache once that one is gone.

The libraries read the hub's address when they are imported, so all is asked in one process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_hub

ROOT = Path(__file__).parents[2]
CARD = """---
configs:
- config_name: colours
  data_files: [{split: train, path: colours/train.parquet}]
- config_name: shapes
  data_files: [{split: val, path: shapes/val.parquet}]
---
"""
ONLINE: dict[str, dict[str, Any]] = {
    "whole": {"dataset": "small/prompts"},
    "streamed": {"dataset": "small/prompts", "streaming": True, "limit": 1},
    "by revision": {"dataset": "small/prompts", "revision": small_hub.COMMIT, "limit": 1},
    "no subset": {"dataset": "small/subsets"},
    "wrong subset": {"dataset": "small/subsets", "subset": "sizes"},
    "subset": {"dataset": "small/subsets", "subset": "shapes"},
    "keyed file": {"dataset": "mjhq-30k", "where": {"category": "food"}},
    "text file": {"dataset": "small/subsets", "file": "lists/more.txt", "column": "text"},
    "no file": {"dataset": "small/prompts", "file": "other.csv"},
    "program": {"dataset": "small/prompts", "file": "read.py"},
    "no data set": {"dataset": "small/other"},
    "no revision": {"dataset": "small/prompts", "revision": "v2"},
}
OFFLINE: dict[str, dict[str, Any]] = {
    "cached": {"dataset": "small/prompts"},
    "cached, streamed": {"dataset": "small/prompts", "streaming": True, "limit": 1},
    "cached by revision": {"dataset": "small/prompts", "revision": small_hub.COMMIT},
    "cached, another revision": {"dataset": "small/prompts", "revision": "v2"},
    "cached subset": {"dataset": "small/subsets"},
    "cached file": {"dataset": "mjhq-30k"},
    "not cached": {"dataset": "small/other"},
    "no cached file": {"dataset": "small/prompts", "file": "other.csv"},
}
ASK = """
import json, sys, datasets, huggingface_hub
from lasro.config import DatasetSettings
from lasro.errors import ConfigError
from lasro.training.dataset_prompts import read_dataset

def ask(tables):
    found = {}
    for name, table in tables.items():
        try:
            prompts, record = read_dataset(DatasetSettings(**table))
            found[name] = [[prompt.text for prompt in prompts], record._asdict()]
        except ConfigError as error:
            found[name] = str(error)
    return found

online, offline = json.loads(sys.argv[1])
found = ask(online)
datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
print(json.dumps(found | ask(offline)))
"""


def write(path: Path, *prompts: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([{"prompt": text, "image": b"\x89PNG"} for text in prompts]), path)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("hub")
    write(folder / "small/prompts/train.parquet", "a red disc", "two cats", "a red disc")
    write(folder / "small/subsets/colours/train.parquet", "a blue star")
    write(folder / "small/subsets/shapes/val.parquet", "a ring")
    (folder / "small/subsets/README.md").write_text(CARD)
    (folder / "small/subsets/lists").mkdir()
    (folder / "small/subsets/lists/more.txt").write_text("an oval\n")
    keyed = {"0a": {"category": "art", "prompt": "a mask"}, "0b": {"category": "food", "prompt": "soup"}}
    (folder / "playgroundai/MJHQ-30K").mkdir(parents=True)
    (folder / "playgroundai/MJHQ-30K/meta_data.json").write_text(json.dumps(keyed))
    with subprocess.Popen(
        [sys.executable, small_hub.__file__, str(folder)], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.terminate()


@pytest.fixture(scope="module")
def answers(hub: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cache = str(tmp_path_factory.mktemp("cache"))
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": cache, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", ASK, json.dumps([ONLINE, OFFLINE])]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=240)
    assert done.stderr == "", "bars and advice of the libraries"
    return json.loads(done.stdout)


def test_a_split_of_the_hub_is_read_with_its_commit(answers: dict[str, Any]) -> None:
    """Bug: a run kept "main" as its revision, which is another commit a week later."""
    texts, record = answers["whole"]
    assert texts == ["a red disc", "two cats"]
    assert (record["name"], record["split"], record["revision"]) == ("small/prompts", "train", small_hub.COMMIT)
    assert (record["rows"], record["repeated"]) == (3, 1)
    for name in ("streamed", "by revision"):
        assert answers[name][0] == ["a red disc"]
        assert answers[name][1]["revision"] == small_hub.COMMIT


def test_a_subset_is_named_where_there_are_several(answers: dict[str, Any]) -> None:
    """Bug: a message of the library that names its own argument, with an example in Python after it."""
    reason = "cannot be read as a data set (subset: got none. Please pick one among the available configs: "
    assert answers["no subset"] == f"small/subsets: {reason}['colours', 'shapes'])"
    assert answers["wrong subset"].endswith("(BuilderConfig 'sizes' not found. Available: ['colours', 'shapes'])")
    assert answers["subset"][0] == ["a ring"]
    assert (answers["subset"][1]["subset"], answers["subset"][1]["split"]) == ("shapes", "val")


def test_one_file_of_a_repository_is_read_in_place_of_its_data(answers: dict[str, Any]) -> None:
    """Bug: MJHQ-30K's data are 9 GB of images without prompts, which are in a JSON file beside them."""
    texts, record = answers["keyed file"]
    assert texts == ["soup"]
    assert (record["name"], record["revision"]) == ("playgroundai/MJHQ-30K", small_hub.COMMIT)
    assert record["licence"] == "none stated"
    assert answers["text file"][0] == ["an oval"]
    assert answers["text file"][1]["revision"] == small_hub.COMMIT
    assert answers["no file"] == "small/prompts: has no file 'other.csv'"
    assert answers["program"].startswith("small/prompts: file: got 'read.py', expected a name that ends in .parquet")


def test_what_the_hub_does_not_have_is_said_in_one_line(answers: dict[str, Any]) -> None:
    """Bug: a traceback through two libraries and a HTTP client for a misspelt name."""
    assert answers["no data set"].startswith("small/other: cannot be read as a data set (Dataset 'small/other' doesn't")
    assert answers["no revision"].startswith("small/prompts: cannot be read as a data set (Revision 'v2' doesn't exist")
    assert not any("\n" in answer for answer in answers.values() if isinstance(answer, str))


def test_without_the_hub_its_cache_is_read(answers: dict[str, Any]) -> None:
    """Bug: a data set that was downloaded before could not be read on a machine without network."""
    for name in ("cached", "cached by revision"):
        assert answers[name] == answers["whole"]
    assert answers["cached, streamed"] == answers["streamed"]
    assert answers["cached file"][0] == ["a mask", "soup"]
    assert answers["cached subset"][1]["subset"] == "shapes", "the only one that is cached: the record says which"
    for name in ("not cached", "no cached file"):
        assert answers[name].endswith(
            "(not in the hub's cache here, and the hub cannot be reached; name a file or folder, or go online)"
        )


def test_the_cache_is_not_taken_for_another_revision(answers: dict[str, Any]) -> None:
    """Bug: the library takes whatever is cached, so that a run which names a commit was trained on another one."""
    assert answers["cached, another revision"] == (
        "small/prompts: got revision v2, which cannot be asked for now; the hub's cache here has "
        f"{small_hub.COMMIT}; go online, or name that one"
    )
