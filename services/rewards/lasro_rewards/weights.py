"""Load a model and tokenizer of transformers from a folder or from what the hub left on this machine.

Safetensors only, nothing is downloaded, and a checkpoint that lacks a tensor is refused: transformers would fill it
with random numbers, and a reward with a random head scores without complaint.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lasro.errors import ModelError
from lasro_rewards.packages import needed
from lasro_rewards.settings import settings


def quiet_transformers(extra: str) -> Any:
    """The transformers package without loading bars and advice."""
    transformers = needed("transformers", extra)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def device(extra: str) -> Any:
    """The torch device of `LASRO_REWARD_DEVICE`; limits torch's CPU threads, too."""
    torch = needed("torch", extra)
    torch.set_num_threads(settings().reward_threads)
    wanted = settings().reward_device
    if wanted != "auto":
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_model(class_name: str, setting: str, extra: str) -> Any:
    """A model in float32 and evaluation mode on the reward's device; raises ModelError, ConfigError."""
    name, revision = located(setting)
    model_class = getattr(quiet_transformers(extra), class_name)
    place = device(extra)
    try:
        model, report = model_class.from_pretrained(
            name,
            revision=revision,
            local_files_only=True,
            use_safetensors=True,
            dtype=needed("torch", extra).float32,
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(missing(setting)) from error
    if report["missing_keys"]:
        first, count = min(report["missing_keys"]), len(report["missing_keys"])
        raise ModelError(
            f"{_shown(setting)}: lacks {count} tensors of {class_name}, such as {first}; is it that model?"
        )
    return model.eval().requires_grad_(False).to(place)


def load_tokenizer(class_name: str, setting: str, extra: str) -> Any:
    """The tokenizer beside a model; raises ModelError."""
    name, revision = located(setting)
    tokenizer_class = getattr(quiet_transformers(extra), class_name)
    try:
        return tokenizer_class.from_pretrained(name, revision=revision, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(missing(setting)) from error


def located(setting: str) -> tuple[str, str | None]:
    """Folder or hub id of a setting, and the revision; a converted model has no default and raises ModelError."""
    value: str = getattr(settings(), setting)
    if not value:
        raise ModelError(missing(setting))
    if Path(value).is_dir():
        return value, None
    name, _, revision = value.partition("@")
    return name, revision or None


def missing(setting: str) -> str:
    """What to do about weights that are not there."""
    value: str = getattr(settings(), setting)
    if not value:
        return f"{_shown(setting)}: run python -m lasro_rewards.convert --help, then set the variable to what it wrote"
    name, _, revision = value.partition("@")
    pinned = f" --revision {revision}" if revision else ""
    files = "--include '*.json' --include '*.txt' --include 'model*.safetensors'"
    return (
        f"{_shown(setting)}: no usable safetensors model there; run hf download {name}{pinned} {files}, "
        "or set the variable to a folder that holds it"
    )


def _shown(setting: str) -> str:
    value: str = getattr(settings(), setting)
    return f"LASRO_{setting.upper()}: got {value!r}"
