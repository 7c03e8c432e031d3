"""How an exported folder is loaded, as the code of its card says it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from lasro.models.published_names import PublishedNames
from lasro.num_steps import NumSteps
from lasro_client.export.source import Base

AdapterForm = Literal["diffusers", "kohya", "peft"]


def adapter_usage(
    form: AdapterForm, file: str, place: str, names: PublishedNames, base: Base, sampling: Sequence[str]
) -> str:
    """Markdown for an adapter. `place`: its repository or folder; `sampling`: further arguments of the pipeline."""
    classes, lines = [names.pipeline], []
    source = json.dumps(base.hub_ids[0]) if base.hub_ids else f'"..."  # {base.name}'
    if len(base.hub_ids) > 1:
        classes = ["LCMScheduler", names.pipeline, "UNet2DConditionModel"]
        lines.append(f"unet = UNet2DConditionModel.from_pretrained({json.dumps(base.hub_ids[1])})")
        lines.append(f"pipeline = {names.pipeline}.from_pretrained({source}, unet=unet)")
        lines.append("pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)")
    else:
        lines += [f"base = {source}", f"pipeline = {names.pipeline}.from_pretrained(base)"]
    where = f"{json.dumps(place)}, weight_name={json.dumps(file)}"
    if form == "peft":  # what load_lora_weights calls; it has no prefix for peft's own
        lines.append(f'pipeline.unet.load_lora_adapter({where}, prefix="base_model.model")')
    else:
        lines.append(f"pipeline.load_lora_weights({where})")
    return _code([f"from diffusers import {', '.join(classes)}", "", *lines, _draw(sampling)], form, file)


def merged_usage(place: str, sampling: Sequence[str]) -> str:
    """Markdown for a whole folder."""
    lines = [
        "from diffusers import DiffusionPipeline",
        "",
        f"pipeline = DiffusionPipeline.from_pretrained({json.dumps(place)})",
    ]
    return _code([*lines, _draw(sampling)], None, "")


def sampling_arguments(timesteps: Sequence[int] | None, guidance: float | None, num_steps: NumSteps = 2) -> list[str]:
    """Of the pipeline's call: so many steps, at these timesteps where there are any."""
    steps = f"num_inference_steps={num_steps}" if timesteps is None else f"timesteps={list(timesteps)}"
    return [steps] if guidance is None else [steps, f"guidance_scale={guidance:g}"]


def _draw(sampling: Sequence[str]) -> str:
    return f"image = pipeline({', '.join(('prompt', *sampling))}).images[0]"


def _code(lines: Sequence[str], form: AdapterForm | None, file: str) -> str:
    code = "\n".join(("```python", *lines, "```"))
    if form != "kohya":
        return code
    return f"{code}\n\nComfyUI reads `{file}` from `models/loras`, A1111 from `models/Lora`."
