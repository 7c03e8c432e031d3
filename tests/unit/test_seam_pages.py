"""The examples of "Add a model family" and "Add a method", run as they stand on the pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pages import DOCS
from shared_update import PROMPTS, CurvedScore
from tiny_sd15 import write_tiny_sd15

from lasro.config import LoraSettings, ModelSettings, TrainSettings
from lasro.methods import registry as methods
from lasro.methods.base import Method
from lasro.methods.regulariser import distance_to_base
from lasro.models import registry as families
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.sampling import draw_noises, sample_latents


def run_page(name: str, **known: Any) -> dict[str, Any]:
    """Everything that the Python blocks of a page define, one after the other."""
    found = dict(known)
    text = (DOCS / name).read_text(encoding="utf-8")
    for block in text.split("```python\n")[1:]:
        exec(compile(block.split("```")[0], name, "exec", dont_inherit=True), found)
    return found


def test_the_familys_example_draws_as_the_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a page that shows an interface of the last release."""
    shipped = load_model(ModelSettings(path=str(write_tiny_sd15(tmp_path / "model")), device="cpu"))
    registered = dict(families.FAMILIES)
    family: type[GeneratorModel] = run_page("add-a-model-family.md", FAMILIES=registered)["Family"]
    assert registered["StableDiffusionPipeline"] == "lasro.models.mine:Family"
    mine = family.load(str(tmp_path / "model"), shipped.settings)
    noises = draw_noises(mine, 1, torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = [sample_latents(model, noises, model.embed(["a red star"]))[-1] for model in (shipped, mine)]
    assert torch.equal(*latents)


def test_the_methods_example_ascends_the_plain_score(one_level_model_path: Path) -> None:
    """Guards against a page whose method cannot be run: its gradient must be that of -mean R(z1) - mean R(z2)."""
    registered = dict(methods.METHODS)
    page = run_page("add-a-method.md", METHODS=registered)
    assert registered["plain-ascent"] == "lasro.methods.plain_ascent:PlainAscent"
    settings = page["PlainAscentSettings"](type="plain-ascent", regulariser_weight=0.5)
    method: Method = page["PlainAscent"](settings, distance_to_base)
    model = load_model(ModelSettings(path=str(one_level_model_path), device="cpu"))
    trainer = GeneratorTrainer(model, method, LoraSettings(rank=2), TrainSettings(clip_norm=1e9), seed=0)
    with torch.no_grad():
        for parameter in trainer.parameters:
            parameter.add_(0.02)
    steps = trainer.sample(PROMPTS, trainer.draws())
    regulariser = distance_to_base(trainer, steps, trainer.draws())
    statistics = trainer.step(PROMPTS, CurvedScore())
    assert statistics.regulariser == pytest.approx(regulariser.item(), rel=1e-5)
    assert statistics.grad_norm > 0
    assert trainer.version == 1
