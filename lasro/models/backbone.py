"""The model that a surrogate stands on where it is not the generator: loaded for its network, and of the same latents.

Two VAEs are compared by what they make of one picture, not by their weights: those of a VAE that was retouched for 16
bits, or stored in another dtype, are others, and its latents are the same.

Shape legend: B batch, C latent channels, H, W latent height and width, h, w image height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch

from lasro.config import BackboneModelSettings, BackboneSettings, LatentSpace, ModelSettings, SurrogateRun
from lasro.errors import ModelError, WireError
from lasro.models.base import GeneratorModel
from lasro.models.registry import load_model

CARD_LATENTS = 4
"""Side of the test card in latents."""
CARD_SQUARES = 8
"""Squares of the test card on each side."""
TOLERANCE = 0.1
"""Largest difference of two VAEs' latents of the card, in units of their size: half precision changes a hundredth."""
SETTING = "surrogate.backbone"
NOTE = "backbone"
"""Key in the header of a surrogate's weights."""


def trunk_of(run: SurrogateRun, generator: GeneratorModel) -> GeneratorModel:
    """What the surrogate of that run stands on: `generator` itself, or the backbone, loaded on its device and checked.

    Raises ModelError.
    """
    if run.surrogate.backbone is None:
        return generator
    described = with_latents(run, generator)
    backbone = load_trunk(described.trunk_model.model_copy(update={"device": generator.device.type}))
    check_latents(backbone, described)
    return backbone


def load_trunk(settings: ModelSettings) -> GeneratorModel:
    """A generator, or a backbone with no more in memory than a surrogate needs of it; raises ModelError."""
    if not isinstance(settings, BackboneModelSettings):
        return load_model(settings)
    with _named():
        model = load_model(settings)
        model.keep_only_trunk()
        return model


def check_is_trunk(model: GeneratorModel, backbone: BackboneSettings | None) -> None:
    """Raises ModelError for a model that is not the backbone where there is to be one."""
    if backbone is not None and not isinstance(model.settings, BackboneModelSettings):
        raise ModelError(
            f"{SETTING}: got {backbone.name}, but the surrogate was put on {model.settings.path}; give it "
            "lasro.models.backbone.trunk_of(config.surrogate_run, model)"
        )


# --- weights of surrogates -----------------------------------------------------------------------------------


def note_of(backbone: BackboneSettings | None) -> dict[str, str]:
    """What the header of a surrogate's weights says of the backbone; nothing of one that stood on its generator."""
    return {} if backbone is None else {NOTE: backbone.name}


def check_note(header: Mapping[str, str], backbone: BackboneSettings | None) -> None:
    """Raises WireError for weights that were trained on another backbone: names and shapes alone may fit."""
    got, expected = header.get(NOTE), None if backbone is None else backbone.name
    if got != expected:
        on = [f"{SETTING} {name}" if name else "its generator" for name in (got, expected)]
        advice = f'set {SETTING} = "{got}"' if got else f"leave {SETTING} out"
        raise WireError(f"surrogate weights: got some on {on[0]}, expected them on {on[1]}; {advice}, or start afresh")


# --- latents -------------------------------------------------------------------------------------------------


def with_latents(run: SurrogateRun, generator: GeneratorModel) -> SurrogateRun:
    """The run with what its backbone is checked by, where it has one."""
    if run.surrogate.backbone is None:
        return run
    height, width = generator.image_size
    latents = LatentSpace(
        height=height, width=width, downscale=_downscale(generator), test_card=_card_latents(generator)
    )
    return run.model_copy(update={"latents": latents})


def check_latents(backbone: GeneratorModel, run: SurrogateRun) -> None:
    """Raises ModelError for a backbone whose latents are not those of the run's generator, as far as that is known."""
    if run.latents is None or run.surrogate.backbone is None:
        return
    name, generator = f"{SETTING} {run.surrogate.backbone.name}", run.model.path
    advice = f"take a backbone with the VAE of {generator}, or leave it out"
    if (got := _downscale(backbone)) != (expected := run.latents.downscale):
        raise ModelError(f"{name}: got {got} pixels to a latent's side, expected the generator's {expected}; {advice}")
    ours, theirs = torch.tensor(_card_latents(backbone)), torch.tensor(run.latents.test_card)
    if len(ours) != len(theirs):
        channels = [len(card) // CARD_LATENTS**2 for card in (ours, theirs)]
        raise ModelError(
            f"{name}: got latents of {channels[0]} channels, expected the generator's {channels[1]}; {advice}"
        )
    difference = ((ours - theirs).norm() / theirs.norm()).item()
    if not difference <= TOLERANCE:
        raise ModelError(
            f"{name}: got latents of a picture that differ by {difference:.0%} from the generator's, expected "
            f"{TOLERANCE:.0%} at most; {advice}"
        )


def _downscale(model: GeneratorModel) -> int:
    return model.image_size[0] // model.latent_shape[1]


def _card_latents(model: GeneratorModel) -> list[float]:
    with _named():
        return model.encode_any_size(_test_card(CARD_LATENTS * _downscale(model))).flatten().tolist()


def _test_card(side: int) -> np.ndarray:
    """Squares of all colours, uint8 [1, side, side, 3], the same ones at any size."""
    colours = np.random.default_rng(0).integers(0, 256, (CARD_SQUARES, CARD_SQUARES, 3), dtype=np.uint8)
    places = np.arange(side) * CARD_SQUARES // side
    return colours[places][:, places][None]


@contextmanager
def _named() -> Iterator[None]:
    """Errors begin with the setting."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{SETTING}: {error}") from error
