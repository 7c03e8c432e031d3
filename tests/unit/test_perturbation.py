"""Smooth perturbations: their size, their smoothness, and that nothing but a sample's own noise decides them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lasro.config import ModelSettings
from lasro.functional.perturbation import perturb, smooth_noise
from lasro.models.registry import load_model
from lasro.training.sampling import draw_noises, sample_latents, sample_perturbed


def test_each_sample_has_size_one_and_neighbours_move_together() -> None:
    """Guards against white noise, which the decoder turns into texture and of which most rewards say nothing."""
    noise_BCHW = smooth_noise((8, 4, 16, 16), torch.Generator().manual_seed(0))
    assert torch.allclose(noise_BCHW.square().mean((1, 2, 3)), torch.ones(8), atol=1e-5)
    neighbours = (noise_BCHW[..., 1:] - noise_BCHW[..., :-1]).square().mean((1, 2, 3))
    assert (neighbours < 0.6).all()  # 2 for white noise


def test_latents_smaller_than_a_grid_are_perturbed_too() -> None:
    """Guards against a field that is interpolated down, for a tiny model."""
    assert smooth_noise((1, 4, 2, 3), torch.Generator().manual_seed(0)).shape == (1, 4, 2, 3)


def test_a_perturbation_is_measured_by_the_samples_own_deviation() -> None:
    """Guards against a size that is nothing for one model's latents and everything for another's."""
    z_BCHW = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 5
    moved = perturb(z_BCHW, torch.ones_like(z_BCHW), torch.tensor([0.5, 0.0], dtype=torch.float64)) - z_BCHW
    assert moved[0].flatten().tolist() == pytest.approx([0.5 * z_BCHW[0].std().item()] * 256)
    assert moved[1].abs().max() == 0


def test_a_samples_perturbation_does_not_depend_on_its_neighbours(one_level_model_path: Path) -> None:
    """Guards against groups that come out differently when several processes share a round."""
    model = load_model(ModelSettings(path=str(one_level_model_path)))
    noises = draw_noises(model, 3, torch.Generator().manual_seed(0))
    conditioning = model.embed(["a", "b", "c"])
    with torch.no_grad():
        together = sample_perturbed(model, 0.5, noises, conditioning)
        base = sample_latents(model, noises, conditioning, base=True)
        rows = torch.tensor([1])
        alone = sample_perturbed(model, 0.5, [noise[rows] for noise in noises], conditioning.rows(rows))
    for all_BCHW, one, of_base in zip(together, alone, base, strict=True):
        assert torch.allclose(all_BCHW[1], one[0], atol=1e-4)
        size_B = (all_BCHW - of_base).square().mean((1, 2, 3)).sqrt() / of_base.std((1, 2, 3))
        assert ((size_B > 0) & (size_B < 0.51)).all()
