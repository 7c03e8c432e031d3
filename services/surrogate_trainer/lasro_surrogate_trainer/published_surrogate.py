"""Scores and gradients of published versions, computed while the next one is being trained.

Shape legend: B samples of a request, CHW one latent.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import numpy as np
import torch

from lasro.config import SurrogateSettings
from lasro.errors import NonFiniteError
from lasro.models.device import device_memory
from lasro.models.frozen import FrozenModel
from lasro.models.surrogate import build_surrogate, draw_augmentation, score_and_gradient
from lasro_surrogate_trainer.store import RunStore

SCORE_DRAWS = 8
SCORE_SEED = 814_321
CHUNK = 32
"""Samples in one forward pass, so that a large request needs no more memory than a small one."""
MEMORY_ADVICE = f'send fewer than {CHUNK} (train.micro_batch_size), or set surrogate.serve_autocast = "bfloat16"'


def _memory(samples: int) -> AbstractContextManager[None]:
    return device_memory(f"surrogate scores of {samples} samples, {min(samples, CHUNK)} at once", MEMORY_ADVICE)


class PublishedSurrogate:
    """A second surrogate that holds one published version at a time. Not thread-safe."""

    def __init__(self, frozen: FrozenModel, settings: SurrogateSettings, store: RunStore) -> None:
        self.frozen, self.settings, self.store = frozen, settings, store
        self._surrogate = build_surrogate(frozen.model, settings)
        self._version: int | None = None

    def _use(self, version: int) -> None:
        if version != self._version:
            self._surrogate.load_safetensors(self.store.read(version))
            self._version = version

    @torch.no_grad()
    def score(
        self, latents_BCHW: np.ndarray, prompts: list[str], version: int, draws: int = SCORE_DRAWS
    ) -> list[float]:
        """Scores, one per prompt: means over `draws` fixed draws of the augmentation, the same for every sample.

        So a latent's score does not depend on what else is in the request. Raises NonFiniteError, NotFoundError.
        """
        self._use(version)
        device = self.frozen.model.device
        shape = (draws, *self.frozen.model.latent_shape)
        generator = torch.Generator().manual_seed(SCORE_SEED)
        timesteps, noise = (t.to(device) for t in draw_augmentation(shape, self.settings.max_timestep, generator))
        scores: list[float] = []
        for start in range(0, len(prompts), CHUNK):
            with _memory(len(prompts)):
                latents = torch.from_numpy(latents_BCHW[start : start + CHUNK]).to(device)
                conditioning = self.frozen.embed(prompts[start : start + CHUNK])
                total_B = torch.zeros(len(latents), device=device)
                for t, eps in zip(timesteps, noise, strict=True):
                    total_B += self._surrogate(
                        latents,
                        t.expand(len(latents)),
                        eps.expand_as(latents),
                        conditioning,
                        self.settings.serve_autocast,
                    )
                scores += (total_B / draws).tolist()
        if not np.isfinite(scores).all():
            raise NonFiniteError(f"scores of version {version}: got NaN or infinity, expected finite numbers")
        return scores

    def score_images(self, images_BHWC: np.ndarray, prompts: list[str], version: int) -> list[float]:
        """`score` of images uint8 [B, H, W, 3], encoded by the model's VAE."""
        latents_BCHW = self.frozen.model.encode(images_BHWC).float().cpu().numpy()
        return self.score(latents_BCHW, prompts, version)

    def gradient(
        self,
        latents_BCHW: np.ndarray,
        timesteps_B: np.ndarray,
        noise_BCHW: np.ndarray,
        prompts: list[str],
        version: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores [B] float32 and d score_b / d latents_b [B, C, H, W] in the dtype of the latents.

        Raises NonFiniteError where either is not finite in that dtype, NotFoundError for a version that is gone.
        """
        self._use(version)
        device = self.frozen.model.device
        scores, gradients = [], []
        for start in range(0, len(prompts), CHUNK):
            part = slice(start, start + CHUNK)
            with _memory(len(prompts)):
                latents, timesteps, noise = (
                    torch.from_numpy(array[part]).to(device) for array in (latents_BCHW, timesteps_B, noise_BCHW)
                )
                scores_B, gradient_BCHW = score_and_gradient(
                    self._surrogate,
                    latents,
                    timesteps,
                    noise.float(),
                    self.frozen.embed(prompts[part]),
                    self.settings.serve_autocast,
                )
                scores.append(scores_B.float().cpu().numpy())
                gradients.append(gradient_BCHW.cpu().numpy())
        with np.errstate(over="ignore"):
            result = np.concatenate(scores), np.concatenate(gradients).astype(latents_BCHW.dtype)
        if not all(np.isfinite(array).all() for array in result):
            raise NonFiniteError(
                f"gradient of version {version}: got NaN or infinity, expected finite numbers in "
                f"{latents_BCHW.dtype}; send float32 latents, or go back to an earlier version"
            )
        return result

    def check(self, version: int) -> None:
        """Run one forward pass, as a readiness check; raises NonFiniteError, NotFoundError."""
        self.score(np.zeros((1, *self.frozen.model.latent_shape), np.float32), [""], version, draws=1)
