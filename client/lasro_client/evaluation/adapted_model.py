"""A model with an adapter on it, as `lasro generate`, `evaluate` and `export` draw with it."""

from __future__ import annotations

import logging
from pathlib import Path

from lasro.config import ModelSettings
from lasro.models.adapter import AdapterKeys
from lasro.models.adapter_file import noted_timesteps
from lasro.models.adapter_formats import scaled
from lasro.models.base import GeneratorModel
from lasro.models.base_adapter import noted_base_adapter
from lasro.models.registry import load_model

log = logging.getLogger("lasro")


def load_adapted(
    settings: ModelSettings, adapter: Path | None, partial: bool, strength: float = 1.0
) -> tuple[GeneratorModel, AdapterKeys | None]:
    """The model, and what of the adapter it took, `strength` times. Raises ModelError.

    A warning says so where that is not all of it, and where it was trained for other timesteps or on another base.
    """
    model = load_model(settings)
    if adapter is None:
        return model, None
    if strength == 1.0:
        keys = model.load_lora(adapter, partial)
    else:
        found = model.find_lora(adapter, partial)
        model.put_lora(scaled(found, strength))
        keys = found.keys
    warn_of_difference(model, adapter, keys)
    return model, keys


def warn_of_difference(model: GeneratorModel, adapter: Path, keys: AdapterKeys) -> None:
    """Say what of the adapter was not taken, and where that was trained for other timesteps or on another base."""
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
