"""Embeddings of prompts that are kept on disk, and text encoders that are let go."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from changed_model import change_weights, copy_model

from lasro.cache_folder import cache_folder
from lasro.config import ModelSettings
from lasro.errors import ConfigError
from lasro.models import prompt_embeddings
from lasro.models.conditioning import Conditioning
from lasro.models.embedding_store import EmbeddingStore
from lasro.models.registry import load_model
from lasro.models.unet_generator import UNetGenerator

PROMPTS = ["a red circle", "a blue square", "a red circle"]
KEY, OTHER = "ab" * 32, "cd" * 32


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("LASRO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def load(path: Path, **settings: str) -> UNetGenerator:
    model = load_model(ModelSettings.model_validate({"path": str(path), "device": "cpu", **settings}))
    assert isinstance(model, UNetGenerator)
    return model


def is_read(model: UNetGenerator) -> bool:
    return model.pipeline.text_encoder.device.type != "meta"


def entries(cache: Path) -> list[Path]:
    return sorted((cache / "embeddings").glob("*/*"))


def same(one: Conditioning, other: Conditioning) -> bool:
    return one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one.tensors
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_read_back_is_bit_for_bit_what_stock_computes(one_level_model_path: Path, dtype: str) -> None:
    """Guards against a run whose bytes depend on whether its prompts were embedded before: a rounded or swapped row."""
    model = load(one_level_model_path, dtype=dtype)
    computed = model.embed(PROMPTS)
    pipeline = model.pipeline
    embeds, _, pooled, _ = pipeline.encode_prompt(PROMPTS[1], device="cpu", do_classifier_free_guidance=False)
    assert torch.equal(computed["embeds"][1], embeds[0])
    assert torch.equal(computed["pooled"][1], pooled[0])
    again = load(one_level_model_path, dtype=dtype)
    assert same(again.embed(PROMPTS), computed)
    assert not is_read(again), "the text encoders were read although all was on disk"


def test_encoders_go_and_come_back_for_a_prompt_that_is_new(one_level_model_path: Path) -> None:
    """Guards against text encoders held for a whole run, and against a released one that embeds nothing any more."""
    model = load(one_level_model_path)
    assert not is_read(model)
    expected = model.embed(["never seen"])
    assert is_read(model)
    model.embed_ahead(PROMPTS)
    assert not is_read(model)
    model.embed(PROMPTS)
    assert not is_read(model)
    model.prompt_encoder.embeddings.clear()
    for path in entries(Path(os.environ["LASRO_CACHE_DIR"])):
        path.unlink()
    assert same(model.embed(["never seen"]), expected)
    model.prompt_encoder.encoders._used -= 3600
    model.embed(["never seen"])
    assert not is_read(model), "one prompt an hour ago holds gigabytes"


def test_an_adapted_encoder_is_not_let_go_and_leaves_nothing_on_disk(one_level_model_path: Path, cache: Path) -> None:
    """Guards against embeddings of an adapter that a later run without it would read."""
    model = load(one_level_model_path)
    model.prompt_encoder.adapt()
    adapted = model.embed(PROMPTS[:1])
    model.embed_ahead(PROMPTS)
    assert is_read(model)
    assert entries(cache) == []
    assert same(adapted, model.embed(PROMPTS[:1]))


def test_other_weights_or_another_dtype_are_other_entries(
    one_level_model_path: Path, tmp_path: Path, cache: Path
) -> None:
    """Guards against the embeddings of a model that was in that folder before."""
    folder = copy_model(one_level_model_path, tmp_path / "model")
    first = load(folder).embed(PROMPTS[:1])
    assert len(entries(cache)) == 1
    moved = copy_model(folder, tmp_path / "moved")
    load(moved).embed(PROMPTS[:1])
    assert len(entries(cache)) == 1, "the same weights elsewhere are the same weights"
    change_weights(folder / "text_encoder/model.safetensors", lambda s: {name: t * 1.01 for name, t in s.items()})
    assert not same(load(folder).embed(PROMPTS[:1]), first)
    load(folder, dtype="bfloat16").embed(PROMPTS[:1])
    assert len(entries(cache)) == 3


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b"", lambda b: b[:-1] + bytes([b[-1] ^ 1])])
def test_a_broken_entry_is_computed_again(
    one_level_model_path: Path, cache: Path, damage: Callable[[bytes], bytes]
) -> None:
    """Guards against half an entry after a power cut, and against a flipped bit that goes into every image."""
    expected = load(one_level_model_path).embed(PROMPTS[:1])
    (path,) = entries(cache)
    path.write_bytes(damage(path.read_bytes()))
    assert same(load(one_level_model_path).embed(PROMPTS[:1]), expected)
    assert EmbeddingStore(cache / "embeddings", 1 << 20).get(path.name) is not None


def test_a_folder_that_takes_nothing_costs_no_run(
    one_level_model_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Guards against a container without a writable home in which nothing can be embedded."""
    cache.write_text("a file where the folder would be")
    model = load(one_level_model_path)
    expected = model.embed(PROMPTS)
    model.embed_ahead(["another", "and another"])
    assert is_read(model), "they would have to be read again for each prompt"
    assert same(model.embed(PROMPTS), expected)
    assert len([record for record in caplog.records if "LASRO_CACHE_DIR" in record.message]) == 1


def test_the_oldest_go_where_there_are_too_many_bytes(tmp_path: Path) -> None:
    """Guards against a cache that fills the disk, and against one that drops what is in use."""
    store = EmbeddingStore(tmp_path, 10_000)
    row = {"embeds": torch.zeros(200)}  # some 900 bytes with its header
    keys = [f"{i:064x}" for i in range(30)]
    for age, key in enumerate(keys):
        store.put(key, row)
        if store.has(key):
            path = tmp_path / key[:2] / key
            used = time.time() - 1e5 + age
            os.utime(path, (used, used))
            store.get(keys[0])  # in use all the time
    kept = [key for key in keys if store.has(key)]
    assert keys[0] in kept
    assert keys[-1] in kept
    assert keys[1] not in kept
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= 10_000
    assert not store.put(OTHER, {"embeds": torch.zeros(10_000)}), "larger than all that may lie there"


def _write_until_killed(store: EmbeddingStore, rows: list[torch.Tensor]) -> None:
    for i in range(10**6):
        store.put(f"{i % len(rows):064x}", {"embeds": rows[i % len(rows)]})


def test_killed_writers_leave_no_half_entry(tmp_path: Path) -> None:
    """Guards against kill -9 between two writes, and against processes that take one another's temporary files."""
    rows = [torch.full((40_000,), float(i)) for i in range(40)]
    context = multiprocessing.get_context("fork")  # another would import torch
    arguments = EmbeddingStore(tmp_path, 1 << 30), rows
    writers = [context.Process(target=_write_until_killed, args=arguments) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        for writer in writers:
            writer.start()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*/[0-9a-f]*"))) < 10:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for writer in writers:
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
    store = EmbeddingStore(tmp_path, 1 << 30)
    for path in tmp_path.glob("*/[0-9a-f]*"):
        found = store.get(path.name)
        assert found is not None
        assert torch.equal(found["embeds"], rows[int(path.name, 16)])


def test_leftovers_of_killed_processes_are_removed_in_time(tmp_path: Path) -> None:
    """Guards against temporary files that nobody counts."""
    store = EmbeddingStore(tmp_path, 1 << 20)
    store.put(KEY, {"embeds": torch.zeros(1)})
    old, new = (tmp_path / "ab" / f".{KEY}.{name}" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    EmbeddingStore(tmp_path, 1 << 20).put(OTHER, {"embeds": torch.zeros(1)})
    assert not old.exists()
    assert new.exists(), "another process may be writing it"


def test_memory_is_bounded_by_bytes(one_level_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: 2048 prompts of an SDXL-class model in memory were 1.3 GB in each process."""
    monkeypatch.setattr(prompt_embeddings, "MEMORY_BYTES", 20_000)
    model = load(one_level_model_path)
    prompts = [f"a circle {i}" for i in range(30)]
    found = model.embed(prompts)
    held = model.prompt_encoder.embeddings._rows
    assert (
        sum(tensor.nbytes for row in held.values() for tensor in row.values())
        == model.prompt_encoder.embeddings._bytes
        <= 20_000
    )
    assert same(model.embed(prompts), found)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a setting that is read over."""
    monkeypatch.setenv("LASRO_CACHE_BYTES", "0")
    assert cache_folder() is None
    monkeypatch.delenv("LASRO_CACHE_BYTES")
    monkeypatch.delenv("LASRO_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    found = cache_folder()
    assert found is not None
    assert found.path == Path("/somewhere/lasro")
    monkeypatch.setenv("LASRO_CACHE_BYTES", "4 GB")
    with pytest.raises(ConfigError, match="LASRO_CACHE_BYTES: got '4 GB', expected a whole number of bytes"):
        cache_folder()
