"""A short run over real services for families of transformers, and its adapter in stock diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformer_checks as checks
from tiny_transformers import write_tiny_flux2, write_tiny_sana, write_tiny_z_image
from transformer_checks import Family, normalised

from lasro.config import load_config
from lasro_client.run.stage2 import train

SHORT = ["train.rounds=2", "evaluation.prompts=1", "evaluation.drift_prompts=1", "lora.alpha=64"]
"""One round of collecting and adapting, one that trains too."""


@pytest.mark.proof
def test_sana_sprint(config_path: Path, tmp_path: Path) -> None:
    """Guards against a family that samples like stock and cannot be trained: surrogate, drift, rewards or adapter."""
    folder = write_tiny_sana(tmp_path / "model")
    sizes = {"height": 32, "width": 32, "use_resolution_binning": False}
    family = Family(folder, "SanaSprintPipeline", lambda _: {"guidance_scale": 4.5, **sizes}, 4.5)
    train_and_compare(config_path, tmp_path, family)


@pytest.mark.proof
def test_z_image_turbo(config_path: Path, tmp_path: Path) -> None:
    """Guards against the same in the eight steps that a model is made for, where a sampler adds no noise and prompts
    have lengths of their own."""
    options = {"guidance_scale": 0.0, "height": 16, "width": 16}
    family = Family(write_tiny_z_image(tmp_path / "model"), "ZImagePipeline", lambda _: options)
    train_and_compare(config_path, tmp_path, family, 8)


@pytest.mark.proof
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of a norm, which then is not fused
def test_flux2_klein(config_path: Path, tmp_path: Path) -> None:
    """Guards against the same in four steps, where latents are patches, and the text encoder is a model with a head."""
    options = {"guidance_scale": 1.0, "height": 16, "width": 16}
    folder = write_tiny_flux2(tmp_path / "model")
    train_and_compare(
        config_path, tmp_path, Family(folder, "Flux2KleinPipeline", lambda _: options, 1.0, normalised), 4
    )


def train_and_compare(config_path: Path, tmp_path: Path, family: Family, num_steps: int | None = None) -> None:
    """In one step and two, or in so many alone."""
    own = [f"model.path={family.folder}", f"model.guidance={family.guidance}"]
    # The scores of two samples alone have too few degrees of freedom to tell a width.
    own += [f"train.steps=[{num_steps}]", "train.batch_size=4"] if num_steps else []
    config = load_config(config_path, [*own, *SHORT])
    summary: dict[str, Any] = train(config, tmp_path / "run")
    assert summary["rounds"] == 2
    *_, last = map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert last["policy_version"] == 1
    assert last["failed_samples"] == 0
    pipeline, model = checks.stock(family), checks.load(family.folder, family.guidance)
    num_steps = num_steps or 2
    before = checks.our_latents(model, num_steps)
    pipeline.load_lora_weights(tmp_path / "run" / "adapter")
    model.load_lora(tmp_path / "run" / "adapter")
    ours = checks.our_latents(model, num_steps)
    assert (ours - checks.stock_latents(family, pipeline, num_steps)).abs().max() <= 1e-4
    assert (ours - before).any(), "the run trained nothing"
