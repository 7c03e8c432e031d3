"""A readiness check for a trainer that has no run yet: one forward pass of an untrained surrogate."""

from __future__ import annotations

import torch

from lasro.config import SurrogateSettings
from lasro.errors import NonFiniteError
from lasro.models.device import device_memory
from lasro.models.frozen import FrozenModel
from lasro.models.surrogate import build_surrogate


class ReadinessProbe:
    """An untrained surrogate over a frozen model, with adapters: a second trunk of a large model would fill a GPU."""

    def __init__(self, frozen: FrozenModel) -> None:
        self._frozen = frozen
        self._surrogate = build_surrogate(frozen.model, SurrogateSettings(trunk="adapter"))

    @torch.no_grad()
    def check(self) -> None:
        """Run one forward pass; raises NonFiniteError for a score of NaN or infinity."""
        model = self._frozen.model
        with device_memory("a forward pass of LASRO_PROBE_MODEL", "name a smaller one, or free memory on its device"):
            latents_BCHW = torch.zeros((1, *model.latent_shape), device=model.device)
            timesteps_B, noise_BCHW = torch.zeros(1, dtype=torch.int64, device=model.device), latents_BCHW.clone()
            scores_B = self._surrogate(latents_BCHW, timesteps_B, noise_BCHW, self._frozen.embed([""]))
        if not torch.isfinite(scores_B).all():
            raise NonFiniteError(
                "a surrogate of LASRO_PROBE_MODEL: got NaN or infinity, expected a score; check the model"
            )
