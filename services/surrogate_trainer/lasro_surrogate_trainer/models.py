"""Frozen models, loaded once for all runs that use them."""

from __future__ import annotations

import threading
import weakref

import torch

from lasro.backbone import Conditioning, TwoStepModel, load_model
from lasro.config import ModelSettings, SurrogateRun


class FrozenModel:
    """A model that several threads may use: its weights never change, its prompt cache is behind a lock."""

    def __init__(self, model: TwoStepModel) -> None:
        self.model = model
        self._lock = threading.Lock()

    def embed(self, prompts: list[str]) -> Conditioning:
        """Embeddings of the prompts, each computed alone; raises PromptTooLongError.

        In a batch the last bits of one would depend on which others are not cached yet: on what came before a restart.
        """
        with self._lock:
            rows = [self.model.embed([prompt]) for prompt in prompts]
        return Conditioning(*(torch.cat(parts) for parts in zip(*rows, strict=True)))

    @property
    def image_side(self) -> int:
        """Pixels of an image's side."""
        return self.model.latent_shape[1] * self.model.pipeline.vae_scale_factor


class ModelCache:
    """Models by their settings, kept only while a run holds them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: weakref.WeakValueDictionary[ModelSettings, FrozenModel] = weakref.WeakValueDictionary()

    def get(self, config: SurrogateRun) -> FrozenModel:
        """The run's model on the surrogate's device, loaded where no other run has it; raises ModelError."""
        settings = config.model.model_copy(update={"device": config.surrogate.device})
        with self._lock:
            frozen = self._models.get(settings)
            if frozen is None:
                frozen = self._models[settings] = FrozenModel(load_model(settings))
            return frozen
