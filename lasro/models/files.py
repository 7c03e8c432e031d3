"""A model's files on disk, looked at before anything large is read from them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lasro.config import BUNDLED
from lasro.errors import ModelError
from lasro.validation import one_line

BUNDLED_FOLDER = "assets/tiny-sdxl-lcm"
INDEX = "model_index.json"
LFS_HEAD = b"version https://git-lfs.github.com/spec/"
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
SINGLE_FILE = ".safetensors"
WEIGHTS_NAMES = "diffusion_pytorch_model.safetensors or model.safetensors"
WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(\.(?P<variant>\w+))?\.safetensors")
SHARDS = re.compile(r"(diffusion_pytorch_model|model)\.safetensors\.index(\.(?P<variant>\w+))?\.json")


def local_source(source: str) -> str:
    """Where a setting's folder or file is; a hub id stays as it is."""
    return str(files("lasro").joinpath(BUNDLED_FOLDER)) if source == BUNDLED else str(at_home(Path(source)))


def at_home(path: Path) -> Path:
    """With `~` expanded, and as it is where no such user has a home."""
    return Path(os.path.expanduser(path))


def looks_local(source: str) -> bool:
    """Whether it can only be a path, so that a typing error is not looked up on the hub."""
    return source.startswith(("/", ".", "~"))


def is_single_file(source: str) -> bool:
    """Whether a setting names one file of weights rather than a folder or hub id."""
    return source.endswith((SINGLE_FILE, *PICKLED))


def read_json(path: Path, where: str) -> dict[str, Any]:
    """The object in a JSON file; raises ModelError."""
    check_file(path, where)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{where}: {path.name} cannot be read ({one_line(str(error))})") from error
    if not isinstance(found, dict):
        raise ModelError(f"{where}: {path.name} cannot be read (got {one_line(repr(found))}, expected an object)")
    return found


def check_file(path: Path, where: str) -> None:
    """Raises ModelError for a file that is not there, cannot be opened, or only points at its content elsewhere."""
    try:
        with path.open("rb") as file:
            head = file.read(len(LFS_HEAD))
    except OSError as error:
        raise ModelError(f"{where}: {path.name} cannot be read ({error.strerror})") from error
    if head == LFS_HEAD:
        raise ModelError(
            f"{where}: {path.name} is a Git LFS pointer, expected the file itself; run `git lfs pull` in its folder"
        )
    if not head:
        raise ModelError(f"{where}: {path.name} is empty; download it again")


def check_weights_file(path: Path, where: str) -> None:
    """Raises ModelError for a single file that cannot be read, or is a pickle, which may run code when it is opened."""
    check_file(path, where)
    if path.suffix in PICKLED:
        raise ModelError(f"{where}: got {path.suffix}, a pickle, expected {SINGLE_FILE}; convert it with safetensors")
    _check_whole(path, where)


def _check_whole(path: Path, where: str) -> None:
    """Raises ModelError for a file of weights that ends early or is none; reads its head alone."""
    try:
        with safe_open(path, "np"):
            pass
    except (SafetensorError, OSError) as error:
        reason = one_line(str(error))
        raise ModelError(f"{where}: {path.name} is no whole file of weights ({reason}); download it again") from error


def check_folder(folder: Path, parts: Iterable[str], kind: str, where: str) -> None:
    """Raises ModelError naming the parts that a pipeline's folder lacks."""
    try:
        found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    except OSError as error:
        raise ModelError(f"{where}: cannot be read ({error.strerror}); expected the folder of a {kind}") from error
    if missing := [part for part in parts if part not in found]:
        raise ModelError(
            f"{where}: lacks {', '.join(missing)}, which a {kind} has; found {', '.join(found) or 'nothing'}"
        )


def check_files(folder: Path, where: str) -> None:
    """Raises ModelError for configuration or vocabulary of a part that cannot be read."""
    for path in _files(folder, where):
        if path.suffix == ".json":
            read_json(path, where)
        elif path.suffix == ".txt":
            check_file(path, where)


def _files(folder: Path, where: str) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.is_dir())  # links that lead nowhere too
    except OSError as error:
        raise ModelError(f"{where}: cannot be read ({error.strerror})") from error


def weights_variant(folder: Path, where: str) -> str | None:
    """The variant of a part's weights, such as "fp16", None for the plain ones, which count where both are there.

    Raises ModelError where there are none that can be read without running code.
    """
    return _chosen_weights(folder, where)[0] or None


def weights_files(folder: Path, where: str) -> list[Path]:
    """The files of these weights; raises as `weights_variant`."""
    return [folder / name for name in _chosen_weights(folder, where)[1]]


def _chosen_weights(folder: Path, where: str) -> tuple[str, list[str]]:
    names = [path.name for path in _files(folder, where)]
    whole, sharded = (_by_variant(kind, names) for kind in (WEIGHTS, SHARDS))
    if not (variants := sorted(whole.keys() | sharded.keys(), key=lambda name: (name != "", name != "fp16", name))):
        pickled = [name for name in names if name.endswith(PICKLED)]
        found = f"{pickled[0]}, a pickle" if pickled else one_line(", ".join(names)) or "nothing"
        advice = "; load it in diffusers and save it with safe_serialization=True" if pickled else ""
        raise ModelError(f"{where}: got {found}, expected weights as {WEIGHTS_NAMES}{advice}")
    chosen = variants[0]
    files = [whole[chosen]] if chosen in whole else _shards(folder, sharded[chosen], where)
    for name in files:
        check_file(folder / name, where)
        _check_whole(folder / name, where)
    return chosen, files


def _by_variant(pattern: re.Pattern[str], names: Iterable[str]) -> dict[str, str]:
    return {match["variant"] or "": match[0] for name in names if (match := pattern.fullmatch(name))}


def _shards(folder: Path, index: str, where: str) -> list[str]:
    shards = read_json(folder / index, where).get("weight_map")
    wanted = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    if not wanted:
        raise ModelError(f"{where}: {index} has no weight_map; download it again")
    if missing := [name for name in wanted if not (folder / name).is_file()]:
        raise ModelError(f"{where}: lacks {len(missing)} of {len(wanted)} shards, first {one_line(missing[0])}")
    return wanted
