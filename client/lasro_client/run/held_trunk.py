"""What the surrogate of a run stands on in its client: nothing in gradient mode, where the trainer holds it alone."""

from __future__ import annotations

from collections.abc import Callable

from lasro.config import RunSettings
from lasro.methods.registry import method_of
from lasro.models.backbone import trunk_of
from lasro.models.base import GeneratorModel


def held_trunk(
    config: RunSettings, generator: GeneratorModel, embed: Callable[[GeneratorModel], object]
) -> GeneratorModel | None:
    """The generator, or the backbone, which `embed` then has the run's prompts embedded by; None where it is not here.

    Raises ModelError.
    """
    if config.train.mode == "gradient" or not method_of(config).needs_surrogate:
        return None
    trunk = trunk_of(config.surrogate_run, generator)
    if trunk is not generator:
        embed(trunk)
    return trunk
