"""Gradient mode and weights mode, over real HTTP, must update the generator alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from few_step_models import SDXL_BASE, with_scheduler
from tiny_model import write_tiny_model
from tiny_sd15 import write_tiny_sd15

from lasro.config import RunSettings
from lasro.errors import ModelError
from lasro.methods.registry import create_trainer
from lasro.models.backbone import trunk_of, with_latents
from lasro.models.registry import load_model
from lasro.models.surrogate import build_surrogate
from lasro.training.prompts import Prompt
from lasro.training.score_source import ScoreSource
from lasro_client.services.surrogate_client import SurrogateClient
from lasro_client.services.surrogate_scores import FetchedSurrogate, RemoteSurrogate
from lasro_surrogate_trainer.app import create_app
from lasro_surrogate_trainer.settings import TrainerEnvironment

PROMPTS = ["a red star", "a blue square", "a green ring and a pink heart"]


def settings(model_path: str, trunk: str, backbone: Path | None) -> RunSettings:
    return RunSettings.model_validate(
        {
            "name": f"modes-{trunk}-{'own' if backbone is None else 'backbone'}",
            "model": {"path": model_path, "device": "cpu"},
            "prompts": {"train": "unused", "held_out": "unused"},
            "rewards": [{"name": "any"}],
            "surrogate": {
                "trunk": trunk,
                "backbone": backbone and str(backbone),
                "adapter_rank": 4,
                "head_channels": 16,
                "device": "cpu",
            },
            "lora": {"rank": 4, "alpha": 8.0},
        }
    )


def gradients(config: RunSettings, source: ScoreSource, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Of one update, before clipping and AdamW could hide a difference."""
    trainer = create_trainer(config, load_model(config.model))
    with torch.no_grad():
        for parameter in trainer.parameters:
            parameter.add_(0.02)
    monkeypatch.setattr(trainer.optimiser, "step", lambda: None)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, limit: torch.tensor(1.0))
    trainer.step([Prompt(text) for text in PROMPTS], source)
    found = [p.grad for p in trainer.parameters if p.grad is not None]
    assert len(found) == len(trainer.parameters)
    return found


@pytest.mark.parametrize(("trunk", "own"), [("full", True), ("adapter", True), ("adapter", False)])
def test_both_modes_give_the_same_generator_gradient(
    tiny_model_path: Path, redis_url: str, tmp_path: Path, serve, monkeypatch: pytest.MonkeyPatch, trunk: str, own: bool
) -> None:
    """Guards against the modes drifting apart in noise, dtype, normalisation or weights: relative error <= 1e-4.

    Where the surrogate does not stand on the generator's own network, also in prompts' embeddings and noise schedule.
    """
    plain = None if own else write_tiny_model(tmp_path / "plain", guidance_embedding=False)
    backbone = plain and with_scheduler(plain, tmp_path / "backbone", SDXL_BASE)
    config = settings(str(tiny_model_path), trunk, backbone)
    model = load_model(config.model)
    environment = TrainerEnvironment.model_validate({"redis_url": redis_url, "data_dir": tmp_path})
    with SurrogateClient(serve(create_app(environment)), timeout_s=60) as client:
        version = client.create(config.name, with_latents(config.surrogate_run, model)).version
        remote = RemoteSurrogate(client, config.name, config.surrogate.max_timestep)
        trunk_model = trunk_of(config.surrogate_run, model)
        local = FetchedSurrogate(client, config.name, build_surrogate(trunk_model, config.surrogate))
        remote.refresh(version)
        local.refresh(version)
        by_gradient = gradients(config, remote, monkeypatch)
        by_weights = gradients(config, local, monkeypatch)
    flat = [torch.cat([g.flatten() for g in grads]) for grads in (by_gradient, by_weights)]
    error = (flat[0] - flat[1]).norm() / flat[1].norm()
    print(f"trunk {trunk}: relative error of the generator gradient {error:.1e}, norm {flat[1].norm():.3g}")
    assert flat[1].norm() > 0
    assert error <= 1e-4


def test_a_trainer_refuses_a_backbone_of_other_latents(
    tiny_model_path: Path, redis_url: str, tmp_path: Path, serve
) -> None:
    """Guards against a client in gradient mode, which has no backbone to look at, whose latents another VAE made."""
    config = settings(str(tiny_model_path), "adapter", write_tiny_sd15(tmp_path / "sd15", guidance_embedding=False))
    environment = TrainerEnvironment.model_validate({"redis_url": redis_url, "data_dir": tmp_path})
    with SurrogateClient(serve(create_app(environment)), timeout_s=60) as client:
        body = with_latents(config.surrogate_run, load_model(config.model))
        with pytest.raises(ModelError, match=r"^surrogate\.backbone sd15: got latents of a picture that differ by"):
            client.create("other-latents", body)
