"""`lasro export`: an adapter in another tool's form, or fused into its model, with a card, and on the hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from peft import LoraConfig
from safetensors.torch import save_file

from lasro.config import ModelSettings
from lasro.config.base import Dtype
from lasro.errors import ModelError
from lasro.models.adapter import Adapter, AdapterKeys
from lasro.models.adapter_file import ADAPTER_FILE, PEFT_FILE
from lasro.models.adapter_formats import Tensors, diffusers_tensors, in_dtype, kohya_tensors, peft_form, scaled
from lasro.models.adapter_notes import (
    NOISE_METADATA,
    STEPS_METADATA,
    TIMESTEPS_METADATA,
    noted,
    noted_steps,
    noted_timesteps,
)
from lasro.models.base import GeneratorModel
from lasro.models.base_adapter import METADATA as BASE_ADAPTER_METADATA
from lasro.models.published_names import PublishedNames
from lasro.models.registry import load_model
from lasro.num_steps import ONE_AND_TWO, NumSteps
from lasro_client.evaluation.adapted_model import warn_of_difference
from lasro_client.evaluation.export import check_new, export, new_folder
from lasro_client.evaluation.result import IMAGE_FOLDERS
from lasro_client.export.card import CardFacts, guidance_of, write_card
from lasro_client.export.hub import check_repo, push
from lasro_client.export.metadata import FIRST_UNET, describe, modelspec, sd_scripts, tensors_sha256
from lasro_client.export.source import Base, Source, base_of
from lasro_client.export.usage import AdapterForm, adapter_usage, merged_usage, sampling_arguments
from lasro_client.report.images import data_uri, random_pick
from lasro_client.report.run_data import RunData

Form = AdapterForm | Literal["merged"]
FORMS: dict[Form, str] = {
    "diffusers": "a LoRA in diffusers' names",
    "kohya": "a LoRA in kohya's names, which ComfyUI and A1111 read",
    "peft": "a LoRA in peft's names",
    "merged": "a whole diffusers folder",
}


@dataclass(frozen=True)
class ExportRequest:
    """What `lasro export` is asked for."""

    source: Source
    settings: ModelSettings
    """Of the base."""
    out: Path
    """A folder that does not exist yet."""
    form: Form | None = None
    """None: `merged` and, unless it goes to the hub, without a card."""
    dtype: Dtype | None = None
    """Of what is written. None: float32 for a LoRA, that of the settings for a whole model."""
    strength: float = 1.0
    """What is added to the base, times this."""
    partial: bool = False
    repo: str | None = None
    """On the hub; None: it stays here."""


class Exported(NamedTuple):
    """`path`: the adapter's file, or the model's folder. `url`: of the repository on the hub."""

    path: Path
    keys: AdapterKeys | None
    url: str | None


def export_model(request: ExportRequest) -> Exported:
    """Write what was asked for, whole or not at all, then upload it.

    Raises ConflictError where `out` exists, ModelError, StorageError, and what `check_repo` and `push` raise.
    """
    check_new(request.out)
    if request.repo is not None:
        check_repo(request.repo)
    if request.form in (None, "merged"):
        keys, path = _export_merged(request), request.out
    else:
        keys, file = _export_adapter(request, request.form)
        path = request.out / file
    return Exported(path, keys, None if request.repo is None else push(request.out, request.repo))


def _export_merged(request: ExportRequest) -> AdapterKeys | None:
    def write(folder: Path, keys: AdapterKeys | None) -> None:
        assert keys is not None, "there is an adapter"
        timesteps = noted_timesteps(request.source.adapter)
        sampling = sampling_arguments(timesteps, guidance_of(request.source.run), _steps_of(request.source)[-1])
        dtype = request.dtype or request.settings.dtype
        usage = merged_usage(request.repo or request.out.name, sampling)
        _forget_paths(folder)
        write_card(folder, _card_facts(request, "merged", dtype, keys, timesteps, usage))

    has_card = request.form is not None or request.repo is not None
    return export(
        request.settings, request.source.adapter, request.out, request.partial, request.strength, request.dtype,
        write if has_card else None,
    )  # fmt: skip


def _steps_of(source: Source) -> tuple[NumSteps, ...]:
    """Numbers of steps that were trained; one and two where nothing is known of that."""
    return (noted_steps(source.adapter) or ONE_AND_TWO) if source.run is None else source.run.steps


def _forget_paths(folder: Path) -> None:
    """Leave out of the configurations from where diffusers read the parts: a card is for others."""
    for path in folder.rglob("*.json"):
        content = json.loads(path.read_bytes())
        if content.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _export_adapter(request: ExportRequest, form: AdapterForm) -> tuple[AdapterKeys, str]:
    """Returns what was written of the adapter, and the name of its file in the folder."""
    source, base = request.source, base_of(request.settings)
    model = load_model(request.settings)
    found = model.find_lora(source.adapter, request.partial)
    if noted(found.path, NOISE_METADATA) is not None:
        raise ModelError(
            f"{found.path}: moves the first noise, which no other tool does with a LoRA; use it with lasro generate"
        )
    warn_of_difference(model, source.adapter, found.keys)
    names, timesteps, dtype = model.published_names(), noted_timesteps(source.adapter), request.dtype or "float32"
    adapter, title = scaled(found, request.strength), request.out.name
    tensors, config = _tensors(form, adapter, names)
    tensors = in_dtype(tensors, dtype, source.adapter)
    metadata = _metadata(form, adapter, tensors, names, model, request, base)
    for key in (STEPS_METADATA, TIMESTEPS_METADATA, BASE_ADAPTER_METADATA):
        if (value := noted(found.path, key)) is not None:
            metadata[key] = value
    file = {"diffusers": ADAPTER_FILE, "kohya": f"{title}.safetensors", "peft": PEFT_FILE}[form]
    sampling = sampling_arguments(timesteps, guidance_of(source.run), _steps_of(source)[-1])
    usage = adapter_usage(form, file, request.repo or title, names, base, sampling)
    with new_folder(request.out) as folder:
        save_file(tensors, folder / file, {"format": "pt", **metadata})
        if config is not None:
            config.base_model_name_or_path = base.hub_ids[0] if base.hub_ids else None
            config.save_pretrained(str(folder))
        write_card(folder, _card_facts(request, form, dtype, found.keys, timesteps, usage))
    return found.keys, file


def _tensors(form: AdapterForm, adapter: Adapter, names: PublishedNames) -> tuple[Tensors, LoraConfig | None]:
    if form == "peft":
        return peft_form(adapter)
    return (kohya_tensors(adapter, names.modules) if form == "kohya" else diffusers_tensors(adapter)), None


def _metadata(
    form: AdapterForm,
    adapter: Adapter,
    tensors: Tensors,
    names: PublishedNames,
    model: GeneratorModel,
    request: ExportRequest,
    base: Base,
) -> dict[str, str]:
    run, title = request.source.run, request.out.name
    sha256, guidance = tensors_sha256(tensors), guidance_of(run)
    counts = f"{' or '.join(map(str, _steps_of(request.source)))} steps"
    is_first = form == "kohya" and names.architecture.startswith("stable-diffusion-xl")
    more = {
        "usage_hint": None if guidance is None else f"{counts}, guidance scale {guidance:g}",
        "thumbnail": _thumbnail(run),
        "tags": "few-step,reward fine-tuning",
    }
    implementation = FIRST_UNET if is_first else "diffusers"
    found = modelspec(names, implementation, title, model.image_size, sha256, describe(base, run), more)
    if form == "kohya":
        found |= sd_scripts(names, adapter, title, base, model.image_size, sha256, run)
    return found


def _thumbnail(run: RunData | None) -> str | None:
    """The adapted model's image of a held-out prompt, small and inline."""
    if run is None or run.after is None:
        return None
    index = random_pick(len(run.after.prompts), 1)[0]
    return data_uri(run.folder / "evaluation" / "after" / IMAGE_FOLDERS[max(run.steps)] / f"{index:05d}.png")


def _card_facts(
    request: ExportRequest, form: Form, dtype: str, keys: AdapterKeys, timesteps: Sequence[int] | None, usage: str
) -> CardFacts:
    return CardFacts(
        title=request.out.name,
        form=FORMS[form],
        is_adapter=form != "merged",
        library="peft" if form == "peft" else "diffusers",
        dtype=dtype,
        base=base_of(request.settings),
        run=request.source.run,
        keys=keys,
        strength=request.strength,
        timesteps=timesteps,
        usage=usage,
    )
