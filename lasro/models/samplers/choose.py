"""Which sampler a model gets: that of its folder's scheduler, or the one that `model.scheduler` names."""

from __future__ import annotations

from typing import Any

from lasro.config import BackboneModelSettings, ModelSettings
from lasro.errors import ModelError
from lasro.models.samplers.base import Sampler
from lasro.models.samplers.ddim import DdimSampler
from lasro.models.samplers.euler import EulerAncestralSampler, EulerSampler
from lasro.models.samplers.lcm import LcmSampler
from lasro.models.samplers.tcd import TcdSampler

SAMPLERS: dict[str, type[Sampler]] = {
    "lcm": LcmSampler,
    "euler": EulerSampler,
    "euler_ancestral": EulerAncestralSampler,
    "tcd": TcdSampler,
    "ddim": DdimSampler,
}
DEFAULTED = "_use_default_values"
"""Keys that a stock configuration's file left out: for them `from_config` of another class takes its own defaults."""
NAMES = ", ".join(f'"{name}"' for name in SAMPLERS)


def choose_sampler(scheduler: Any, settings: ModelSettings, where: str) -> Sampler:
    """The sampler of a pipeline's stock scheduler, or the one made from its configuration that the settings ask for.

    A UNet that was distilled apart from its pipeline is published to be used with `LCMScheduler.from_config(...)`, so
    it is without being asked for. Raises ModelError, beginning with `where`, for a scheduler by which no few-step model
    is sampled here, and for settings that it does not go by.

    Of a backbone nothing is sampled, so any scheduler does that adds noise by betas.
    """
    if isinstance(settings, BackboneModelSettings):
        return _of_any_betas(scheduler, where)
    name = "lcm" if settings.scheduler == "own" and settings.unet is not None else settings.scheduler
    kind = _own(scheduler, where) if name == "own" else SAMPLERS[name]
    config = dict(scheduler.config)
    if name != "own":
        defaulted = [key for key in config.get(DEFAULTED, []) if key not in kind.converted]
        config |= dict(kind.converted) | {DEFAULTED: defaulted}
    if settings.prediction_type is not None:
        config["prediction_type"] = settings.prediction_type
    if kind is TcdSampler:
        sampler = TcdSampler(config, where, settings.eta or 0.0)
    elif settings.eta is not None:
        raise ModelError(f"eta: got {settings.eta:g}, but a {kind.stock_class.__name__} has none; leave it out")
    else:
        sampler = kind(config, where)
    if settings.timesteps is not None and not sampler.takes_timesteps:
        got = list(settings.timesteps)
        raise ModelError(f"timesteps: got {got}, but a {sampler.name} takes none; leave them out for its own")
    return sampler


def _of_any_betas(scheduler: Any, where: str) -> Sampler:
    """One that adds the scheduler's noise, whatever that samples by."""
    if "beta_schedule" not in scheduler.config:
        raise ModelError(
            f"{where}: got a {type(scheduler).__name__}, expected one whose noise levels are made of betas, as those "
            "of DDPM, DDIM, Euler and DPM-Solver are"
        )
    of_ddim = {"timestep_spacing": "trailing", "clip_sample": False, "thresholding": False}
    return DdimSampler(dict(scheduler.config) | of_ddim | {DEFAULTED: []}, where)


def _own(scheduler: Any, where: str) -> type[Sampler]:
    """The sampler of the scheduler's class, where that is how few-step models are sampled."""
    names = {scheduler.config.get("_class_name", type(scheduler).__name__), type(scheduler).__name__}
    kind = next((kind for kind in SAMPLERS.values() if names == {kind.stock_class.__name__}), None)
    spacing = scheduler.config.get("timestep_spacing")
    if kind is None:
        known = " or ".join(kind.stock_class.__name__ for kind in SAMPLERS.values())
        got, expected = " and ".join(sorted(names)), known
    elif kind.converted and spacing != "trailing":
        got, expected = f"{kind.stock_class.__name__} with timestep_spacing {spacing!r}", "'trailing'"
    else:
        return kind
    raise ModelError(
        f'{where}: got {got}, expected {expected}; for a consistency model set model.scheduler = "lcm", for another '
        f"few-step model the one of {NAMES} that it is published with"
    )
