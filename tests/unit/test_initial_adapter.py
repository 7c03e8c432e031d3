"""A generator that begins with an adapter: it draws what the adapter draws, and what is exported holds both."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import PROMPT, latents, load, settings, stock_latents
from adapters import (
    PLAIN,
    RANK,
    UNET,
    Factors,
    State,
    diffusers_form,
    kohya_form,
    random_factors,
    write_adapter,
)
from shared_update import CurvedScore

from lasro.config import RunSettings
from lasro.errors import ConflictError, ModelError
from lasro.methods.registry import create_trainer
from lasro.training.generator_trainer import GeneratorTrainer
from lasro.training.prompts import Prompt
from lasro_client.run.folder import RunFolder
from lasro_client.run.initial_adapter import start_from_adapter
from lasro_client.run.progress import Progress

TARGETS = ("to_q", "to_out.0", "ff.net.2", "conv1")


@pytest.fixture(scope="module")
def factors(tiny_model_path: Path) -> Factors:
    """On linear layers and convolutions."""
    return random_factors(tiny_model_path / UNET, TARGETS, scale=0.05)


def begin(
    model: Path, run: Path, adapter: Path, lora: dict[str, Any] | None = None
) -> tuple[RunFolder, GeneratorTrainer]:
    """As `lasro train` does before its first round."""
    config = RunSettings.model_validate(
        {
            "name": "continued",
            "model": settings(model).model_dump(),
            "prompts": {"train": "unused", "held_out": "unused"},
            "rewards": [{"name": "any"}],
            "lora": {"rank": RANK, "targets": TARGETS} | (lora or {}),
            "train": {"initial_adapter": str(adapter)},
        }
    )
    folder, trainer = RunFolder(run, config, "train"), create_trainer(config, load(model))
    folder.open()
    start_from_adapter(folder, trainer)
    return folder, trainer


FORMS: dict[str, tuple[Callable[[Factors], State], dict[str, Any]]] = {
    "ours": (diffusers_form, {}),
    "kohya": (kohya_form, {"alpha": 3.0}),
    "a lower rank": (kohya_form, {"rank": 2 * RANK, "alpha": 3.0}),
}


@pytest.mark.parametrize("form", FORMS)
def test_training_goes_on_from_an_adapter(tiny_model_path: Path, factors: Factors, tmp_path: Path, form: str) -> None:
    """Guards against a run that begins with the base all the same, or with the adapter at another scale, and against an
    exported adapter that lacks what it began with."""
    make, lora = FORMS[form]
    adapter = write_adapter(tmp_path / "given" / PLAIN, make(factors))
    _, trainer = begin(tiny_model_path, tmp_path / "run", adapter, lora)
    assert not trainer.is_base, "reference samples of the base are due from the first round on"
    expected = latents(trainer.model)
    assert (expected - stock_latents(tiny_model_path, adapter)).abs().max() <= 1e-4
    assert (expected - latents(trainer.model, base=True)).abs().max() > 0.05
    trainer.step([Prompt(PROMPT)], CurvedScore())
    trainer.restore(None)
    assert torch.equal(latents(trainer.model), expected), "a run in trouble goes back to what it began with"
    for _ in range(2):
        trainer.step([Prompt(PROMPT)], CurvedScore())
    with torch.no_grad():
        for average, parameter in zip(trainer.average, trainer.parameters, strict=True):
            average.copy_(parameter)
    trainer.save(tmp_path / "trained")
    trained = latents(trainer.model)
    assert (trained - expected).abs().max() > 1e-3
    assert (trained - stock_latents(tiny_model_path, tmp_path / "trained")).abs().max() <= 1e-4


def test_a_resumed_run_keeps_the_adapter_that_it_began_with(
    tiny_model_path: Path, factors: Factors, tmp_path: Path
) -> None:
    """Guards against a run that goes on with another adapter, and one that cannot go on because a file was moved."""
    adapter = write_adapter(tmp_path / "given" / PLAIN, kohya_form(factors))
    folder, first = begin(tiny_model_path, tmp_path / "run", adapter, {"alpha": 3.0})
    folder.checkpoint(Progress(surrogate_version=0), first)
    _, same = begin(tiny_model_path, tmp_path / "run", adapter, {"alpha": 3.0})
    write_adapter(adapter / PLAIN, kohya_form({name: (down, up * 1.01) for name, (down, up) in factors.items()}))
    with pytest.raises(ConflictError, match=r"given: is not the adapter that the run in .*run began with"):
        begin(tiny_model_path, tmp_path / "run", adapter, {"alpha": 3.0})
    shutil.rmtree(adapter)
    _, without = begin(tiny_model_path, tmp_path / "run", adapter, {"alpha": 3.0})
    for resumed in (same, without):
        assert all(map(torch.equal, resumed.parameters, first.parameters))
    with pytest.raises(ConflictError, match=r"differing in train\.initial_adapter"):
        begin(tiny_model_path, tmp_path / "run", tmp_path / "other", {"alpha": 3.0})


def test_a_run_that_has_not_begun_takes_the_adapter_of_now(
    tiny_model_path: Path, factors: Factors, tmp_path: Path
) -> None:
    """Guards against the copy of a first try that failed: settings may change as long as no round is done."""
    adapter = write_adapter(tmp_path / "given" / PLAIN, diffusers_form(factors))
    begin(tiny_model_path, tmp_path / "run", adapter)
    write_adapter(adapter / PLAIN, diffusers_form({name: (down, -up) for name, (down, up) in factors.items()}))
    _, trainer = begin(tiny_model_path, tmp_path / "run", adapter)
    assert (latents(trainer.model) - stock_latents(tiny_model_path, adapter)).abs().max() <= 1e-4


FC1 = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
TEXT_ENCODER = {f"{FC1}.lora_A.weight": torch.ones(2, 16), f"{FC1}.lora_B.weight": torch.ones(32, 2)}


def dora_form(factors: Factors) -> State:
    magnitudes = {f"unet.{module}.lora_magnitude_vector": torch.ones(len(up)) for module, (_, up) in factors.items()}
    return diffusers_form(factors) | magnitudes


MISFITS: dict[str, tuple[Callable[[Factors], State], dict[str, Any], str]] = {
    "rank": (diffusers_form, {"rank": 2}, r"does not fit this run's LoRA; set lora\.rank = 4 \(got 2\)$"),
    "targets": (
        diffusers_form,
        {"targets": ["conv1", "to_k"]},
        r"set lora\.targets = \['conv1', 'net\.2', 'to_k', 'to_out\.0', 'to_q'\]$",
    ),
    "text encoder": (
        lambda f: diffusers_form(f) | TEXT_ENCODER,
        {},
        "got a LoRA of text_encoder and unet, expected a plain LoRA of the UNet.*lasro export",
    ),
    "DoRA": (dora_form, {}, "got DoRA, expected a plain LoRA.*lasro export"),
    "another model": (lambda f: {f"unet.elsewhere.{k}": t for k, t in diffusers_form(f).items()}, {}, "have no place"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_an_adapter_that_does_not_fit_is_refused_with_what_would(
    tiny_model_path: Path, factors: Factors, tmp_path: Path, case: str
) -> None:
    """Guards against a part of the adapter that is left out, so that the run begins somewhere else."""
    make, lora, message = MISFITS[case]
    adapter = write_adapter(tmp_path / "given" / PLAIN, make(factors))
    with pytest.raises(ModelError, match=message) as refusal:
        begin(tiny_model_path, tmp_path / "run", adapter, lora)
    assert str(refusal.value).startswith("train.initial_adapter: ")
