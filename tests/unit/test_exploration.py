"""Pushing samples up a surrogate's gradient, against a score whose gradient is known."""

from __future__ import annotations

import torch

from lasro.config import RunSettings
from lasro_client.exploration import exploration, push

PROMPTS = ["a", "b", "c"]


class Plane:
    """R(z) = sum z, whose gradient is 1 everywhere."""

    def score_and_gradient(
        self, latents_BCHW: torch.Tensor, timesteps_B: torch.Tensor, noise_BCHW: torch.Tensor, prompts: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert noise_BCHW.shape == latents_BCHW.shape
        assert int(timesteps_B.max()) < 7
        return latents_BCHW.sum((1, 2, 3)), torch.ones_like(latents_BCHW)


class Flat(Plane):
    """A surrogate that says nothing."""

    def score_and_gradient(
        self, latents_BCHW: torch.Tensor, timesteps_B: torch.Tensor, noise_BCHW: torch.Tensor, prompts: list[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(latents_BCHW)), torch.zeros_like(latents_BCHW)


def test_each_sample_goes_its_own_way_up_and_not_too_far() -> None:
    """Guards against going down, against one length for all, and against steps that grow with the gradient."""
    z = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    moved = push(z, PROMPTS, torch.Generator().manual_seed(1), source=Plane(), distance=0.3, max_timestep=7)
    way = moved - z
    share_B = way.flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)
    expected_B = torch.rand(3, generator=torch.Generator().manual_seed(1)) * 0.3
    torch.testing.assert_close(share_B, expected_B)
    assert (way > 0).all()
    again = push(z, PROMPTS, torch.Generator().manual_seed(1), source=Plane(), distance=0.3, max_timestep=7)
    assert torch.equal(moved, again), "equal seeds must explore alike, or a resumed run differs"


def test_a_flat_surrogate_moves_nothing() -> None:
    """Guards against dividing by a gradient of zero, which would send NaN to the reward."""
    z = torch.randn(3, 4, 2, 2)
    moved = push(z, PROMPTS, torch.Generator().manual_seed(1), source=Flat(), distance=0.3, max_timestep=7)
    assert torch.equal(moved, z)


def test_no_distance_is_no_exploration() -> None:
    """Guards against paying for copies of samples that were not moved."""
    config = RunSettings.model_validate(
        {"name": "x", "prompts": {"train": "t", "held_out": "h"}, "rewards": [{"name": "r"}]}
    )
    assert exploration(config, 0.0, Plane()) is None
    assert exploration(config, 0.1, Plane()) is not None
