"""Scores and gradients of a trainer's surrogate: asked for over HTTP, or from its weights, fetched and held here.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lasro.config import SurrogateSettings
from lasro.models.base import GeneratorModel
from lasro.models.surrogate import SurrogateReward, build_surrogate
from lasro.training.score_source import LocalSurrogate
from lasro_client.services.surrogate_client import SurrogateClient


class RemoteSurrogate:
    """Gradient mode: latents go to the trainer, gradients come back; no surrogate is held here."""

    def __init__(self, client: SurrogateClient, run: str, max_timestep: int) -> None:
        self.client, self.run, self.version, self.max_timestep = client, run, 0, max_timestep

    def refresh(self, version: int) -> None:
        """Ask for this published version from now on."""
        self.version = version

    def score_and_gradient(
        self, latents_BCHW: Tensor, timesteps_B: Tensor, noise_BCHW: Tensor, prompts: list[str]
    ) -> tuple[Tensor, Tensor]:
        latents, timesteps, noise = (t.detach().cpu().numpy() for t in (latents_BCHW, timesteps_B, noise_BCHW))
        scores, gradient, _ = self.client.gradient(self.run, latents, timesteps, noise, prompts, self.version)
        device = latents_BCHW.device
        return torch.from_numpy(scores).to(device).float(), torch.from_numpy(gradient).to(device).float()


class FetchedSurrogate(LocalSurrogate):
    """Weights mode: a surrogate held here whose trained part is fetched from the trainer when it is newer."""

    def __init__(self, client: SurrogateClient, run: str, surrogate: SurrogateReward) -> None:
        super().__init__(surrogate)
        self.client, self.run = client, run
        self.version: int | None = None

    def refresh(self, version: int) -> None:
        """Fetch this published version unless it is here already."""
        if version == self.version:
            return
        self.surrogate.load_safetensors(self.client.weights_of(self.run, version))
        self.version = version


def score_source(
    run: str,
    settings: SurrogateSettings,
    trunk: GeneratorModel | None,
    client: SurrogateClient,
) -> RemoteSurrogate | FetchedSurrogate:
    """One over `trunk`, in weights mode; one that asks the trainer where there is none here, in gradient mode."""
    if trunk is None:
        return RemoteSurrogate(client, run, settings.max_timestep)
    return FetchedSurrogate(client, run, build_surrogate(trunk, settings))
