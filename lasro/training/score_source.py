"""Where scores and their gradients come from: the trainer over HTTP, or a surrogate held here.

Both answer for the timesteps and noise that they are given, so both give the same generator update.

Shape legend: B batch, C latent channels, H, W latent height and width.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lasro.config import RunSettings
from lasro.models.sdxl import TwoStepModel
from lasro.models.surrogate import SurrogateReward, build_surrogate, score_and_gradient


class ScoreSource(Protocol):
    """Anything that gives R(z, c) and dR/dz."""

    def score_and_gradient(
        self, latents_BCHW: Tensor, timesteps_B: Tensor, noise_BCHW: Tensor, prompts: list[str]
    ) -> tuple[Tensor, Tensor]:
        """Scores [B] and gradients [B, C, H, W], float32, on the latents' device."""
        ...


class SurrogateService(Protocol):
    """A surrogate trainer that runs elsewhere, as the client's `SurrogateClient` reaches it."""

    def gradient(
        self,
        run: str,
        latents_BCHW: np.ndarray,
        timesteps_B: np.ndarray,
        noise_BCHW: np.ndarray,
        prompts: list[str],
        version: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Scores [B], gradients [B, C, H, W] and the published version that gave them."""
        ...

    def weights_of(self, run: str, version: int) -> bytes:
        """The safetensors of a published version; raises NotFoundError once it is no longer kept."""
        ...


class RemoteSurrogate:
    """Gradient mode: latents go to the trainer, gradients come back; no surrogate is held here."""

    def __init__(self, client: SurrogateService, run: str) -> None:
        self.client, self.run, self.version = client, run, 0

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


class LocalSurrogate:
    """A surrogate held here, differentiated on the frozen base that the generator shares."""

    def __init__(self, surrogate: SurrogateReward) -> None:
        self.surrogate = surrogate

    def score_and_gradient(
        self, latents_BCHW: Tensor, timesteps_B: Tensor, noise_BCHW: Tensor, prompts: list[str]
    ) -> tuple[Tensor, Tensor]:
        conditioning = self.surrogate.model.embed(prompts)
        dtype = self.surrogate.settings.serve_autocast
        return score_and_gradient(self.surrogate, latents_BCHW, timesteps_B, noise_BCHW, conditioning, dtype)


class FetchedSurrogate(LocalSurrogate):
    """Weights mode: a surrogate held here whose trained part is fetched from the trainer when it is newer."""

    def __init__(self, client: SurrogateService, run: str, surrogate: SurrogateReward) -> None:
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
    config: RunSettings, run: str, model: TwoStepModel, client: SurrogateService
) -> RemoteSurrogate | FetchedSurrogate:
    """The one that `train.mode` names."""
    if config.train.mode == "gradient":
        return RemoteSurrogate(client, run)
    return FetchedSurrogate(client, run, build_surrogate(model, config.surrogate))
