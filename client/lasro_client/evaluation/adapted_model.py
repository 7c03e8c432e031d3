"""A model with an adapter on it, as `lasro generate`, `evaluate` and `export` draw with it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from lasro.config import ModelSettings
from lasro.models.adapter import AdapterKeys
from lasro.models.adapter_formats import scaled
from lasro.models.adapter_notes import noted_steps, noted_timesteps
from lasro.models.base import GeneratorModel
from lasro.models.base_adapter import noted_base_adapter
from lasro.models.registry import load_model
from lasro.num_steps import ONE_AND_TWO, NumSteps

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


def steps_to_draw(adapter: Path | None, asked: Sequence[NumSteps] | None) -> tuple[NumSteps, ...]:
    """The numbers of steps that are asked for, or else those that the adapter was trained in, or else one and two.

    A warning names those that are asked for and were not trained, before a model is loaded. Raises ModelError.
    """
    trained = None if adapter is None else noted_steps(adapter)
    if asked is None:
        return trained or ONE_AND_TWO
    if trained is not None and (others := [str(steps) for steps in asked if steps not in trained]):
        log.warning(
            f"{adapter}: was trained to be sampled in {' or '.join(map(str, trained))} steps, and is now in "
            f"{' and '.join(others)}; for what it has learned leave --steps out"
        )
    return tuple(asked)
