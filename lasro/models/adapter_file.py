"""LoRA files as people have them: which file of a folder it is, its tensors, and the scale that it is read with."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft.utils.other import get_pattern_key
from pydantic import BaseModel, FiniteFloat, PositiveInt, ValidationError, field_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lasro.errors import ModelError
from lasro.models.files import INDEX, at_home
from lasro.validation import explain, one_line

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
DIFFUSERS_METADATA = "lora_adapter_metadata"
PICKLES = {".bin", ".ckpt", ".pkl", ".pt", ".pth"}
LFS_POINTER = b"version https://git-lfs"
UNCHANGED_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of peft's `init_lora_weights` that leave the base's weights as they are; any other means another base."""


class LoraScale(BaseModel):
    """What peft's configuration says of the scale of each module; its other keys are not needed to draw."""

    peft_type: str = "LORA"
    r: PositiveInt = 8
    lora_alpha: FiniteFloat = 8.0
    rank_pattern: dict[str, PositiveInt] = {}
    alpha_pattern: dict[str, FiniteFloat] = {}
    use_rslora: bool = False
    init_lora_weights: bool | str | None = True

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _of_regular_expressions(cls, patterns: dict[str, float]) -> dict[str, float]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern[:40]!r} is no regular expression ({error})") from error
        return patterns

    def rank(self, module: str) -> int:
        return self.rank_pattern.get(get_pattern_key(list(self.rank_pattern), module), self.r)

    def of(self, module: str) -> float:
        """alpha / rank, or alpha / sqrt(rank)."""
        alpha = self.alpha_pattern.get(get_pattern_key(list(self.alpha_pattern), module), self.lora_alpha)
        return alpha / (math.sqrt(self.rank(module)) if self.use_rslora else self.rank(module))


class AdapterFile(NamedTuple):
    """`tensors` are float32 and finite. `scales`: by part of the pipeline; "" for one that says it of all parts."""

    path: Path
    tensors: Mapping[str, Tensor]
    scales: Mapping[str, LoraScale]


def read_adapter(path: Path) -> AdapterFile:
    """Read a safetensors file, or the only one of a folder; raises ModelError saying what is wrong with it."""
    with open_adapter(path) as (file, opened):
        metadata = opened.metadata() or {}
        tensors = {name: _checked(file, name, opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
    if not tensors:
        raise ModelError(f"{file}: holds no tensors, expected those of a LoRA")
    return AdapterFile(file, tensors, _scales(file, metadata))


@contextmanager
def open_adapter(path: Path) -> Iterator[tuple[Path, Any]]:
    """A safetensors file, or the only one of a folder, and what safetensors opens; raises ModelError."""
    file = _find_file(path)
    _check_content(file)
    try:
        with safe_open(file, framework="pt") as opened:
            yield file, opened
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: cannot be read as safetensors ({one_line(str(error))}); copy it again") from error


def first_names(names: Iterable[str], count: int = 3) -> str:
    """The first few of them, and how many more there are; bounded, for a message."""
    listed = list(names)
    more = f" and {len(listed) - count} more" if len(listed) > count else ""
    return ", ".join(name[:100] for name in listed[:count]) + more


def _find_file(path: Path) -> Path:
    path = at_home(path)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
        names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(".")) if is_folder else []
    except OSError as error:
        raise ModelError(f"{one_line(str(path))}: cannot be read ({error.strerror})") from error
    if is_file and path.suffix in PICKLES:
        raise ModelError(f"{path}: is a pickle, which can run code; convert it to .safetensors and name that file")
    if is_file:
        return path
    if not is_folder:
        raise ModelError(
            f"{path}: no such adapter; expected a .safetensors file or a folder with one (hub ids are not looked up)"
        )
    return path / _only_file(path, names)


def _only_file(folder: Path, names: Sequence[str]) -> str:
    found = [name for name in names if name.endswith(".safetensors")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ModelError(
            f"{folder}: holds {len(found)} .safetensors files ({first_names(found, 5)}); name one, as "
            f"{folder / found[0]}"
        )
    pickles = [name for name in names if Path(name).suffix in PICKLES]
    if pickles:
        raise ModelError(
            f"{folder}: holds no .safetensors file but pickles ({first_names(pickles)}), which can run code; convert "
            "them"
        )
    if INDEX in names:
        raise ModelError(f"{folder}: is a whole model, no adapter; give it as model.path, without an adapter")
    if deeper := sorted(file.relative_to(folder).as_posix() for file in folder.glob("*/*.safetensors")):
        raise ModelError(
            f"{folder}: holds no .safetensors file, but its folders do ({first_names(deeper)}); name one, as "
            f"{folder / deeper[0]}"
        )
    raise ModelError(f"{folder}: holds no .safetensors file; found {first_names(names) or 'nothing'}")


def _check_content(file: Path) -> None:
    try:
        with file.open("rb") as opened:
            start = opened.read(len(LFS_POINTER))
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror})") from error
    if not start:
        raise ModelError(f"{file}: is empty, expected the tensors of a LoRA; copy it again")
    if start == LFS_POINTER:
        raise ModelError(f"{file}: is a pointer of Git LFS, not the file itself; run `git lfs pull`")


def _checked(file: Path, name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() and tensor.numel() > 1:  # some write alpha, one number, as an integer
        raise ModelError(f"{file}: tensor {name[:100]} is {tensor.dtype}, expected floating point")
    tensor = tensor.to(torch.float32)
    if not tensor.isfinite().all():
        raise ModelError(f"{file}: tensor {name[:100]} holds NaN or infinity; the adapter is broken")
    return tensor


def _scales(file: Path, metadata: Mapping[str, str]) -> dict[str, LoraScale]:
    """From what diffusers writes into the file, or else from peft's adapter_config.json next to it."""
    if DIFFUSERS_METADATA in metadata:
        settings = _json_object(f"{file}: metadata {DIFFUSERS_METADATA}", metadata[DIFFUSERS_METADATA])
        by_part: dict[str, dict[str, object]] = {}
        for name, value in settings.items():
            part, _, setting = name.partition(".")
            by_part.setdefault(part, {})[setting] = value
        return {part: _scale(f"{file}: metadata of {part}", values) for part, values in by_part.items()}
    config = file.with_name(PEFT_CONFIG)
    if not config.is_file():
        if file.name == PEFT_FILE:
            raise ModelError(f"{file}: lacks {PEFT_CONFIG} next to it, which says by what alpha it is scaled; add it")
        return {}
    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{config}: cannot be read ({one_line(str(error))})") from error
    return {"": _scale(str(config), _json_object(str(config), text))}


def _json_object(where: str, text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ModelError(f"{where}: cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise ModelError(f"{where}: got {type(found).__name__}, expected a JSON object")
    return found


def _scale(where: str, values: dict[str, object]) -> LoraScale:
    try:
        scale = LoraScale.model_validate(values)
    except ValidationError as error:
        raise ModelError(f"{where}: {explain(error)}") from error
    if scale.peft_type != "LORA":
        raise ModelError(f"{where}: peft_type {scale.peft_type[:40]!r} is not supported, expected LORA")
    if scale.init_lora_weights not in UNCHANGED_BASE:
        raise ModelError(
            f"{where}: init_lora_weights {scale.init_lora_weights!r} changed the base too; convert it to a plain LoRA "
            "with peft's save_pretrained(path_initial_model_for_weight_conversion=...)"
        )
    return scale
