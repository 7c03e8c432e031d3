"""Where scores and their gradients come from: here a surrogate in this process; `lasro_client` has those of a trainer.

All answer for the timesteps and noise that they are given, so all give the same generator update.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lasro.models.surrogate import SurrogateReward, score_and_gradient


class ScoreSource(Protocol):
    """Anything that gives R(z, c) and dR/dz."""

    @property
    def max_timestep(self) -> int:
        """Latents are diffused to timesteps below it."""
        ...

    def score_and_gradient(
        self, latents_BCHW: Tensor, timesteps_B: Tensor, noise_BCHW: Tensor, prompts: list[str]
    ) -> tuple[Tensor, Tensor]:
        """Scores [B] and gradients [B, C, H, W], float32, on the latents' device."""
        ...


class LocalSurrogate:
    """A surrogate held here, differentiated on the frozen base that the generator shares."""

    def __init__(self, surrogate: SurrogateReward) -> None:
        self.surrogate = surrogate
        self.max_timestep = surrogate.settings.max_timestep

    def score_and_gradient(
        self, latents_BCHW: Tensor, timesteps_B: Tensor, noise_BCHW: Tensor, prompts: list[str]
    ) -> tuple[Tensor, Tensor]:
        conditioning = self.surrogate.model.embed(prompts)
        dtype = self.surrogate.settings.serve_autocast
        return score_and_gradient(self.surrogate, latents_BCHW, timesteps_B, noise_BCHW, conditioning, dtype)
