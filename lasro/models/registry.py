"""Which class loads a model: by the pipeline that its `model_index.json` names.

A new family is a line here, its module, and docs/add-a-model-family.md has the rest.
"""

from __future__ import annotations

import importlib
import json
from importlib.resources import files
from pathlib import Path

from lasro.config import BUNDLED, ModelSettings
from lasro.errors import ModelError
from lasro.models.base import GeneratorModel
from lasro.models.prompt_tokens import PromptTokens

FAMILIES = {
    "StableDiffusionXLPipeline": "lasro.models.sdxl:SdxlConsistencyModel",
    "StableDiffusionPipeline": "lasro.models.sd15:Sd15ConsistencyModel",
}
BUNDLED_FOLDER = "assets/tiny-sdxl-lcm"


def load_model(settings: ModelSettings) -> GeneratorModel:
    """Load a few-step generator; raises ModelError saying what is missing or unsupported."""
    kind, path = _family(settings)
    return kind.load(path, settings)


def load_prompt_tokens(settings: ModelSettings) -> PromptTokens | None:
    """What counts the tokens of prompts for that model, without its weights; None where its family cannot tell."""
    kind, path = _family(settings)
    return kind.load_prompt_tokens(path, settings)


def _family(settings: ModelSettings) -> tuple[type[GeneratorModel], str]:
    """The class that loads the model, and its folder or hub id."""
    path = str(files("lasro").joinpath(BUNDLED_FOLDER)) if settings.path == BUNDLED else settings.path
    name = _pipeline_name(path, settings.revision)
    if name not in FAMILIES:
        raise ModelError(
            f"{path}: got a {name}, expected one of {', '.join(FAMILIES)}; see docs/add-a-model-family.md for another"
        )
    module, _, family = FAMILIES[name].partition(":")
    kind: type[GeneratorModel] = getattr(importlib.import_module(module), family)
    return kind, path


def _pipeline_name(path: str, revision: str | None) -> str:
    index = Path(path, "model_index.json")
    if path.startswith(("/", ".", "~")) and not index.is_file():
        raise ModelError(f"{path}: no model_index.json there; expected the folder of a diffusers pipeline")
    try:
        found = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else _hub_index(path, revision)
        return str(found["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: its model_index.json cannot be read ({error or type(error).__name__})") from error


def _hub_index(path: str, revision: str | None) -> dict[str, object]:
    import lasro.models.quiet  # noqa: F401  (before diffusers)

    # isort: split

    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    return DiffusionPipeline.load_config(path, revision=revision)  # pyright: ignore[reportReturnType]
