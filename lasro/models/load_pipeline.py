"""Stock pipelines from a diffusers folder, a hub id or a single file: part by part, so that an error names the part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn
from transformers import CLIPTextConfig, CLIPTokenizer

from lasro.config import ModelSettings
from lasro.errors import ModelError
from lasro.models.files import (
    INDEX,
    check_files,
    check_folder,
    check_weights_file,
    is_single_file,
    local_source,
    read_json,
    weights_files,
)
from lasro.models.load_unet import load_unet, unet_of_file
from lasro.models.loading import check_finite, load_part, loading, part_class, unread_part
from lasro.models.prompt_tokens import PromptTokens, check_tokenizer


def load_pipeline(
    pipeline_class: Any,
    parts: Sequence[str],
    options: Mapping[str, Any],
    path: str,
    settings: ModelSettings,
    unread: Sequence[str] = (),
) -> Any:
    """A pipeline of that class with all `parts`; `options` go to its `from_pretrained`. Raises ModelError.

    Networks in `unread` are on the meta device, their files looked at and not read; those of a single file are read.
    """
    dtype = getattr(torch, settings.dtype)
    where = f"model.path {path}"
    given: dict[str, Any] = {}
    if settings.unet is not None:
        config = settings.config or (None if is_single_file(path) else path)
        given["unet"] = load_unet(settings.unet, f"model.unet {settings.unet}", dtype, config, "unet" in unread)
    if is_single_file(path):
        return _of_file(pipeline_class, given, options, Path(path), where, settings)
    folder = Path(path) if Path(path).is_dir() else _downloaded(pipeline_class, given, options, path, settings)
    wanted = [part for part in parts if part not in given]
    check_folder(folder, wanted, pipeline_class.__name__, where)
    index = read_json(folder / INDEX, where)
    for part in wanted:
        kind, load = part_class(index, part, f"{where}: {part}"), unread_part if part in unread else load_part
        given[part] = load(kind, folder / part, f"{where}: {part}", dtype)
    if settings.scheduler == "own" and settings.unet is None:
        _check_one_scheduler(folder, index, f"{where}: scheduler")
    with loading(where):  # what else the folder has, such as a feature extractor
        return pipeline_class.from_pretrained(folder, dtype=dtype, use_safetensors=True, **given, **options)


def encoder_files(pipeline: Any, names: Sequence[str], settings: ModelSettings) -> list[Path]:
    """The files of weights of these parts; of a single file that file."""
    if is_single_file(path := local_source(settings.path)):
        return [Path(path)]
    where = f"model.path {path}"
    return [file for name in names for file in weights_files(_folder_of(pipeline) / name, f"{where}: {name}")]


def load_text_encoders(pipeline: Any, names: Sequence[str], settings: ModelSettings) -> dict[str, Any]:
    """These parts of what a pipeline was loaded from, once more; raises ModelError."""
    dtype, path = getattr(torch, settings.dtype), local_source(settings.path)
    where = f"model.path {path}"
    if is_single_file(path):
        kept = {name: part for name, part in pipeline.components.items() if name not in names}
        again = _of_file(type(pipeline), kept, {}, Path(path), where, settings)
        return {name: getattr(again, name) for name in names}
    folder = _folder_of(pipeline)
    index = read_json(folder / INDEX, where)
    kinds = {name: part_class(index, name, f"{where}: {name}") for name in names}
    return {name: load_part(kind, folder / name, f"{where}: {name}", dtype) for name, kind in kinds.items()}


def _folder_of(pipeline: Any) -> Path:
    """Where a pipeline was loaded from; of a hub id the folder of the very commit."""
    return Path(pipeline.config["_name_or_path"])


def _check_one_scheduler(folder: Path, index: Mapping[str, Any], where: str) -> None:
    """Raises ModelError where the scheduler's own file names another class than the index, which stock goes by."""
    named = read_json(folder / "scheduler" / "scheduler_config.json", where).get("_class_name")
    if named not in (None, indexed := index["scheduler"][1]):
        raise ModelError(
            f"{where}: got {named} in scheduler_config.json and {indexed} in {INDEX}, expected one and the same; save "
            'the folder again, or set model.scheduler = "lcm"'
        )


def _downloaded(
    pipeline_class: Any, given: Mapping[str, Any], options: Mapping[str, Any], path: str, settings: ModelSettings
) -> Path:
    """The folder of a hub id, without the parts that are given; the fp16 variant where there is no other."""
    common = {"revision": settings.revision, "use_safetensors": True, **given, **options}
    with loading(f"model.path {path}"):
        try:
            return Path(pipeline_class.download(path, **common))
        except (OSError, ValueError):
            return Path(pipeline_class.download(path, variant="fp16", **common))


def _of_file(
    pipeline_class: Any,
    given: dict[str, Any],
    options: Mapping[str, Any],
    path: Path,
    where: str,
    settings: ModelSettings,
) -> Any:
    check_weights_file(path, where)
    dtype = getattr(torch, settings.dtype)
    config = config_of_file(path, settings.config, where)
    if "unet" not in given:
        given["unet"] = unet_of_file(path, where, dtype, config)
    if "vae" not in given:
        with loading(f"{where}: vae"):
            given["vae"] = AutoencoderKL.from_single_file(str(path), config=config, subfolder="vae", dtype=dtype)
    with loading(where):
        pipeline = pipeline_class.from_single_file(str(path), config=config, dtype=dtype, **given, **options)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and name != "unet":
            check_finite(part, f"{where}: {name}")
    return pipeline


def load_prompt_tokens(
    tokenizers: Sequence[str], text_encoders: Sequence[str], path: str, settings: ModelSettings
) -> PromptTokens:
    """The tokenizers of a model, each with the configuration of its text encoder: no weights are read."""
    return PromptTokens(load_tokenizers(tokenizers, text_encoders, path, settings, CLIPTokenizer, CLIPTextConfig))


def load_tokenizers(
    tokenizers: Sequence[str],
    text_encoders: Sequence[str],
    path: str,
    settings: ModelSettings,
    tokenizer_class: Any,
    config_class: Any,
) -> list[tuple[Any, Any]]:
    """Each with its text encoder's configuration; raises ModelError."""
    where, source = f"model.path {path}", path
    options: dict[str, Any] = {"revision": settings.revision}
    if is_single_file(path):
        source, options = config_of_file(Path(path), settings.config, where), {}
    elif Path(path).is_dir():
        check_folder(Path(path), (*tokenizers, *text_encoders), "pipeline", where)
    pairs = []
    for tokenizer, encoder in zip(tokenizers, text_encoders, strict=True):
        if Path(source).is_dir():
            check_files(Path(source, tokenizer), f"{where}: {tokenizer}")
        with loading(f"{where}: {tokenizer}"):
            found = tokenizer_class.from_pretrained(source, subfolder=tokenizer, **options)
        with loading(f"{where}: {encoder}"):
            text_config = config_class.from_pretrained(source, subfolder=encoder, **options)
        check_tokenizer(found, text_config, f"{where}: {tokenizer}")
        pairs.append((found, text_config))
    return pairs


def config_of_file(path: Path, config: str | None, where: str) -> str:
    """The folder or hub id that a single file takes its configuration from; absent: what its weights look like."""
    if config is not None:
        return local_source(config)
    with loading(where):
        return fetch_diffusers_config(load_single_file_checkpoint(str(path)))["pretrained_model_name_or_path"]
