"""Which class loads a model: by the pipeline that its `model_index.json` names.

A new family is a line here, its module, and docs/add-a-model-family.md has the rest.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from torch import nn

from lasro.config import ModelSettings
from lasro.errors import ModelError
from lasro.models.base import GeneratorModel
from lasro.models.files import INDEX, check_weights_file, is_single_file, local_source, looks_local, read_json
from lasro.models.prompt_tokens import PromptTokens
from lasro.validation import one_line

FAMILIES = {
    "StableDiffusionXLPipeline": "lasro.models.sdxl:SdxlGenerator",
    "StableDiffusionPipeline": "lasro.models.sd15:Sd15Generator",
    "LatentConsistencyModelPipeline": "lasro.models.sd15:LatentConsistencyPipelineGenerator",
    "SanaSprintPipeline": "lasro.models.sana_sprint:SanaSprintGenerator",
    "ZImagePipeline": "lasro.models.z_image:ZImageGenerator",
    "Flux2KleinPipeline": "lasro.models.flux2_klein:Flux2KleinGenerator",
}


def load_model(settings: ModelSettings, shard: bool = False) -> GeneratorModel:
    """Load a few-step generator; raises ModelError saying what is missing or unsupported.

    With `shard` its network stays off the device until `GeneratorModel.shard`; else `settings.shard` means nothing.
    """
    kind, path = _family(settings)
    return kind.load(path, settings.model_copy(update={"shard": shard}))


def load_shapes(settings: ModelSettings, without_memory: Callable[[dict[str, nn.Module]], None]) -> GeneratorModel:
    """The same with networks whose weights are not read, which `without_memory` takes off the meta device first.

    Raises ModelError, also for a family that cannot do it.
    """
    kind, path = _family(settings)
    return kind.load_shapes(path, settings, without_memory)


def load_prompt_tokens(settings: ModelSettings) -> PromptTokens | None:
    """What counts the tokens of prompts for that model, without its weights; None where its family cannot tell."""
    kind, path = _family(settings)
    return kind.load_prompt_tokens(path, settings)


def _family(settings: ModelSettings) -> tuple[type[GeneratorModel], str]:
    """The class that loads the model, and its folder or hub id."""
    path = local_source(settings.path)
    name = _pipeline_name(path, settings)
    if name not in FAMILIES:
        raise ModelError(
            f"{path}: got a {one_line(name)}, expected one of {', '.join(FAMILIES)}; see docs/add-a-model-family.md "
            "for another"
        )
    import lasro.models.quiet  # noqa: F401  (before diffusers, which the family's module imports)

    module, _, family = FAMILIES[name].partition(":")
    kind: type[GeneratorModel] = getattr(importlib.import_module(module), family)
    if settings.timesteps is not None and not kind.takes_timesteps:
        raise ModelError(
            f"timesteps: got {list(settings.timesteps)}, but the steps of {kind.__name__} are at no timesteps; leave "
            "them out"
        )
    return kind, path


def _pipeline_name(path: str, settings: ModelSettings) -> str:
    """Of the pipeline that a folder, a hub id or the configuration of a single file names."""
    where = f"model.path {path}"
    if is_single_file(path):
        check_weights_file(Path(path), where)
        config = _config_of_file(path, settings.config, where)
        if settings.config is None:
            where = f"{where}: without model.config, a diffusers folder of its kind, it needs that of {config}"
        else:
            where = f"model.config {config}"
        return _class_name(config, None, where)
    return _class_name(path, settings.revision, where)


def _class_name(source: str, revision: str | None, where: str) -> str:
    try:
        if looks_local(source) or Path(source).exists():
            if not Path(source, INDEX).exists():
                hint = "; a UNet alone is model.unet" if Path(source, "config.json").exists() else ""
                raise ModelError(f"{where}: no {INDEX} there; expected the folder of a diffusers pipeline{hint}")
            index = read_json(Path(source, INDEX), where)
        else:
            index = _hub_index(source, revision)
    except OSError as error:
        raise ModelError(f"{where}: its {INDEX} cannot be read ({one_line(str(error))})") from error
    if "_class_name" not in index:
        raise ModelError(f"{where}: {INDEX} names no pipeline as _class_name")
    return str(index["_class_name"])


# Both load diffusers, seconds that a mistyped folder need not wait for.


def _config_of_file(path: str, config: str | None, where: str) -> str:
    import lasro.models.quiet  # noqa: F401  (before diffusers)

    # isort: split

    from lasro.models.load_pipeline import config_of_file

    return config_of_file(Path(path), config, where)


def _hub_index(path: str, revision: str | None) -> dict[str, object]:
    import lasro.models.quiet  # noqa: F401  (before diffusers)

    # isort: split

    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    from lasro.models.loading import hub_unreachable

    try:
        return DiffusionPipeline.load_config(path, revision=revision)  # pyright: ignore[reportReturnType]
    except ValueError as error:  # of what can be no hub id
        raise OSError(f"no folder and no hub id: {error}") from error
    except OSError as error:
        raise OSError(hub_unreachable(error) or str(error)) from error
