"""A model with an adapter on it, as `lasro generate`, `evaluate` and `export` draw with it."""

from __future__ import annotations

import logging
from pathlib import Path

from lasro.config import ModelSettings
from lasro.models.adapter_file import noted_timesteps
from lasro.models.base import AdapterKeys, GeneratorModel
from lasro.models.base_adapter import noted_base_adapter
from lasro.models.registry import load_model

log = logging.getLogger("lasro")


def load_adapted(
    settings: ModelSettings, adapter: Path | None, partial: bool
) -> tuple[GeneratorModel, AdapterKeys | None]:
    """The model, and what of the adapter it took. Raises ModelError.

    A warning says so where that is not all of it, and where it was trained for other timesteps or on another base.
    """
    model = load_model(settings)
    if adapter is None:
        return model, None
    keys = model.load_lora(adapter, partial)
    if keys.loaded < keys.total:
        log.warning(f"{adapter}: loaded {keys.loaded} of {keys.total} keys; left out {keys.missing}")
    trained = noted_timesteps(adapter)
    if trained is not None and list(trained) != [step.time for step in model.steps(len(trained))]:
        log.warning(
            f"{adapter}: was trained for timesteps {list(trained)}; sample at these: --timesteps "
            f"{','.join(map(str, trained))} here, timesteps={list(trained)} in stock diffusers"
        )
    on = noted_base_adapter(adapter)
    if on is not None and (model.base_adapter is None or model.base_adapter.sha256 != on.sha256):
        log.warning(f"{adapter}: was trained on top of {on.name}; give the model this, as model.base_adapter")
    return model, keys
