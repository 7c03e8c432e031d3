"""A model with an adapter on it, as `lasro generate`, `evaluate` and `export` draw with it."""

from __future__ import annotations

import logging
from pathlib import Path

from lasro.config import ModelSettings
from lasro.models.base import AdapterKeys, GeneratorModel
from lasro.models.registry import load_model

log = logging.getLogger("lasro")


def load_adapted(
    settings: ModelSettings, adapter: Path | None, partial: bool
) -> tuple[GeneratorModel, AdapterKeys | None]:
    """The model, and what of the adapter it took; a warning says so where that is not all. Raises ModelError."""
    model = load_model(settings)
    if adapter is None:
        return model, None
    keys = model.load_lora(adapter, partial)
    if keys.loaded < keys.total:
        log.warning(f"{adapter}: loaded {keys.loaded} of {keys.total} keys; left out {keys.missing}")
    return model, keys
