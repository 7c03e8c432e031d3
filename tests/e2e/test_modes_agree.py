"""Gradient mode and weights mode, over real HTTP, must update the generator alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lasro.config import RunSettings, SurrogateRun
from lasro.methods.registry import create_trainer
from lasro.models.registry import load_model
from lasro.models.surrogate import build_surrogate
from lasro.training.prompts import Prompt
from lasro.training.score_source import ScoreSource
from lasro_client.services.surrogate_client import SurrogateClient
from lasro_client.services.surrogate_scores import FetchedSurrogate, RemoteSurrogate
from lasro_surrogate_trainer.app import create_app
from lasro_surrogate_trainer.settings import TrainerEnvironment

PROMPTS = ["a red star", "a blue square", "a green ring and a pink heart"]


def settings(model_path: str, trunk: str) -> RunSettings:
    return RunSettings.model_validate(
        {
            "name": f"modes-{trunk}",
            "model": {"path": model_path, "device": "cpu"},
            "prompts": {"train": "unused", "held_out": "unused"},
            "rewards": [{"name": "any"}],
            "surrogate": {"trunk": trunk, "adapter_rank": 4, "head_channels": 16},
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


@pytest.mark.parametrize("trunk", ["full", "adapter"])
def test_both_modes_give_the_same_generator_gradient(
    tiny_model_path: Path, redis_url: str, tmp_path: Path, serve, monkeypatch: pytest.MonkeyPatch, trunk: str
) -> None:
    """Guards against the modes drifting apart in noise, dtype, normalisation or weights: relative error <= 1e-4."""
    config = settings(str(tiny_model_path), trunk)
    environment = TrainerEnvironment.model_validate({"redis_url": redis_url, "data_dir": tmp_path})
    with SurrogateClient(serve(create_app(environment)), timeout_s=60) as client:
        body = SurrogateRun(model=config.model, surrogate=config.surrogate, weights={"any": 1.0})
        version = client.create(config.name, body).version
        remote = RemoteSurrogate(client, config.name, config.surrogate.max_timestep)
        local = FetchedSurrogate(client, config.name, build_surrogate(load_model(config.model), config.surrogate))
        remote.refresh(version)
        local.refresh(version)
        by_gradient = gradients(config, remote, monkeypatch)
        by_weights = gradients(config, local, monkeypatch)
    flat = [torch.cat([g.flatten() for g in grads]) for grads in (by_gradient, by_weights)]
    error = (flat[0] - flat[1]).norm() / flat[1].norm()
    print(f"trunk {trunk}: relative error of the generator gradient {error:.1e}, norm {flat[1].norm():.3g}")
    assert flat[1].norm() > 0
    assert error <= 1e-4
