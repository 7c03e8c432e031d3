"""Frozen models, loaded once and shared by all runs that use them."""

from __future__ import annotations

import threading
import weakref

from lasro.config import ModelSettings
from lasro.models.backbone import load_trunk
from lasro.models.base import GeneratorModel
from lasro.models.conditioning import Conditioning


class FrozenModel:
    """A model that several threads may use: its weights never change, a lock guards its prompt cache."""

    def __init__(self, model: GeneratorModel) -> None:
        self.model = model
        self._lock = threading.Lock()

    def embed(self, prompts: list[str]) -> Conditioning:
        """Embeddings of the prompts; raises PromptTooLongError."""
        with self._lock:
            return self.model.embed(prompts)


ONLY_MEMORY = {"max_batch", "vae_slicing"}
"""Settings of a model that change what is held in memory at once, and no number."""


class ModelCache:
    """Loaded models by their settings. A model is freed once no run holds it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._models: weakref.WeakValueDictionary[ModelSettings, FrozenModel] = weakref.WeakValueDictionary()

    def get(self, model: ModelSettings, device: str) -> FrozenModel:
        """The model or backbone on `device`, loaded unless a run already holds it; raises ModelError."""
        key = _key(model, device)
        with self._lock:
            frozen = self._models.get(key)
            if frozen is None:
                frozen = FrozenModel(load_trunk(model.model_copy(update={"device": device})))
                self._models[key] = frozen
            return frozen

    def put(self, model: ModelSettings, device: str, frozen: FrozenModel) -> None:
        """Have `get` find a model that was loaded elsewhere in this process, while somebody holds `frozen`."""
        with self._lock:
            self._models[_key(model, device)] = frozen


def _key(model: ModelSettings, device: str) -> ModelSettings:
    plain = {name: type(model).model_fields[name].default for name in ONLY_MEMORY}
    return model.model_copy(update={"device": device, **plain})
