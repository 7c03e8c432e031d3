"""The surrogate that ships: made for the model that ships, and of use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lasro.config import load_config
from lasro.demo.shapes import caption, draw, random_scene
from lasro.models.registry import load_model
from lasro.models.surrogate import build_surrogate, draw_augmentation
from lasro_client.services.connect import surrogate_weights

DEMO = Path(__file__).parents[2] / "configs" / "demo.toml"
PAIRS = 24


@torch.no_grad()
def test_prefers_the_prompts_colours() -> None:
    """Bug: a bundled model that is made anew beside a surrogate of the old one, or a damaged file."""
    config = load_config(DEMO)
    model = load_model(config.model)
    surrogate = build_surrogate(model, config.surrogate)
    surrogate.load_safetensors(surrogate_weights("bundled"))
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(PAIRS)]
    exchanged = [scene.with_colors([spec.color for spec in reversed(scene.objects)]) for scene in scenes]
    right, wrong = (model.encode(np.stack([draw(scene) for scene in drawn])) for drawn in (scenes, exchanged))
    augmentation = draw_augmentation(
        (PAIRS, *model.latent_shape), config.surrogate.max_timestep, torch.Generator().manual_seed(0)
    )
    conditioning = model.embed([caption(scene) for scene in scenes])
    scores_right, scores_wrong = (surrogate(latents, *augmentation, conditioning) for latents in (right, wrong))
    share = (scores_right > scores_wrong).float().mean().item()
    assert share > 0.8
