"""README.md of an exported model: base, rewards, prompts, figures before and after, pictures, hashes.

What a run knows is taken from its folder, and what is not there is left out. Paths of this machine are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image

import lasro
from lasro.errors import LasroError, WireError
from lasro.images import MAX_PIXELS, decode_image
from lasro.models.adapter import AdapterKeys
from lasro.training.prompts import read_prompts
from lasro_client.evaluation.estimate_text import estimate_text
from lasro_client.evaluation.result import IMAGE_FOLDERS
from lasro_client.export.metadata import describe
from lasro_client.export.source import Base, known_as
from lasro_client.report.images import random_pick
from lasro_client.report.run_data import RunData
from lasro_client.run.frozen_prompts import FOLDER

PICTURES, PICTURE_EDGE, QUALITY = 4, 512, 90
PROMPTS = 5
LONGEST_PROMPT = 200


@dataclass(frozen=True)
class CardFacts:
    """What the card says in addition to what stands in the run's folder."""

    title: str
    form: str
    """How the files are named and laid out, for people."""
    is_adapter: bool
    """Whether it is one, or a whole model."""
    library: str
    """`library_name` of the hub."""
    dtype: str
    base: Base
    run: RunData | None
    keys: AdapterKeys
    strength: float
    timesteps: Sequence[int] | None
    usage: str
    """Markdown that shows how it is loaded."""


class Picture(NamedTuple):
    """The same prompt and seed drawn by the base and by the adapted model; paths inside the exported folder."""

    prompt: str
    cell: str
    """The prompt as a table of Markdown may hold it."""
    before: str
    after: str


def write_card(folder: Path, facts: CardFacts) -> None:
    """Write README.md, and `images/` where the run has some, into a folder that holds all else already."""
    pictures = _pictures(folder, facts.run)
    summary = (facts.run.summary if facts.run else None) or {}
    card = ModelCard.from_template(
        _card_data(facts, summary, pictures),
        template_str=files("lasro_client.export").joinpath("templates/model_card.md").read_text(encoding="utf-8"),
        title=facts.title,
        description=describe(facts.base, facts.run, facts.is_adapter),
        base=facts.base.name,
        form=facts.form,
        dtype=facts.dtype,
        rewards=_objective(facts.run),
        strength=facts.strength,
        keys=facts.keys,
        timesteps=facts.timesteps,
        guidance=guidance_of(facts.run),
        usage=facts.usage,
        figures=_figures(summary),
        num_prompts=summary.get("prompts"),
        drift=_drift(summary),
        pictures=pictures,
        prompts=_prompts(facts.run),
        hashes=[(path.relative_to(folder).as_posix(), _sha256(path)) for path in sorted(folder.rglob("*.safetensors"))],
        version=lasro.__version__,
    )
    card.save(folder / "README.md")


def guidance_of(run: RunData | None) -> float | None:
    """The guidance scale at which the run sampled."""
    return None if run is None else run.config.get("model", {}).get("guidance")


def _card_data(facts: CardFacts, summary: dict[str, Any], pictures: Sequence[Picture]) -> ModelCardData:
    more: dict[str, Any] = {}
    if facts.base.hub_ids:
        more |= {
            "base_model": list(facts.base.hub_ids),
            "base_model_relation": "adapter" if facts.is_adapter else "finetune",
        }
    if pictures:
        more["widget"] = [{"text": each.prompt, "output": {"url": each.after}} for each in pictures]
    results = _eval_results(facts, summary)
    if results:
        more |= {"eval_results": results, "model_name": facts.title}
    return ModelCardData(
        library_name=facts.library,
        pipeline_tag="text-to-image",
        tags=["lasro", "text-to-image", *(["lora"] if facts.is_adapter else [])],
        **more,
    )


def _eval_results(facts: CardFacts, summary: dict[str, Any]) -> list[EvalResult]:
    if facts.run is None or facts.strength != 1:  # nobody measured it
        return []
    held_out, _ = _prompt_file(facts.run, "held_out")
    return [
        EvalResult(
            task_type="text-to-image",
            dataset_type="prompts",
            dataset_name=held_out,
            metric_type=name,
            metric_name=f"{name}, {steps.replace('_', ' ')}",
            metric_value=row["after"]["mean"],
        )
        for name, rows in summary.get("rewards", {}).items()
        for steps, row in rows.items()
        if row["after"]["mean"] is not None
    ]


def _figures(summary: dict[str, Any]) -> list[list[str]]:
    """Rows of the table: reward, sampling, before, after, difference, n."""
    return [
        [
            name,
            steps.replace("_", " "),
            *(estimate_text(row[key], ".4g") or "-" for key in ("before", "after", "difference")),
            str(row["n"]),
        ]
        for name, rows in summary.get("rewards", {}).items()
        for steps, row in rows.items()
    ]


def _drift(summary: dict[str, Any]) -> str | None:
    """How far the held-out images moved, in changes of prompt; None where the run did not measure it."""
    found = (summary.get("held_out_drift") or {}).items()
    parts = [
        f"{estimate_text(row['distance'], '.4g') or '-'} ({steps.replace('_', ' ')})"
        for steps, row in found
        if "distance" in row
    ]
    return ", ".join(parts) or None


def _objective(run: RunData | None) -> str | None:
    if run is None:
        return None
    rewards = run.config.get("rewards", [])
    combine = run.config.get("objective", {}).get("combine", "sum")
    parts = []
    for reward in rewards:
        weight, floor = reward.get("weight", 1.0), reward.get("floor")
        guard = "" if floor is None else f", at least {floor:g}"
        parts.append(f"{reward['name']} (weight {weight:g}{guard})" if len(rewards) > 1 or guard else reward["name"])
    return ", ".join(parts) + (f"; their {combine}" if len(rewards) > 1 else "")


def _prompts(run: RunData | None) -> list[str]:
    """Which prompts it was trained and measured on, and the first of them."""
    if run is None:
        return []
    lines = []
    for role, key in (("trained on", "train"), ("measured on", "held_out")):
        name, path = _prompt_file(run, key)
        try:
            prompts = read_prompts(path, bool(run.config.get("prompts", {}).get("comments")))
        except LasroError:  # gone since
            lines.append(f"{role} `{name}`, which is no longer where the run read it")
            continue
        shown = "; ".join(_in_cell(prompt.text) for prompt in prompts[:PROMPTS])
        lines.append(f"{role} `{name}`, {len(prompts)} prompts, SHA-256 `{_sha256(path)}`: {shown}")
    return lines


def _prompt_file(run: RunData, key: str) -> tuple[str, Path]:
    """A prompt file's name and place; of a data set its name, and the file of the run's folder that keeps it."""
    source = run.config.get("prompts", {}).get(key)
    if isinstance(source, dict):
        return known_as(str(source.get("dataset"))), run.folder / FOLDER / f"{key}.jsonl"
    return Path(str(source)).name, Path(str(source))


def _pictures(folder: Path, run: RunData | None) -> list[Picture]:
    """Write the images of a few held-out prompts into `images/`; none where the run has none."""
    if run is None or run.before is None:
        return []
    pictures = []
    for index in random_pick(len(run.before.prompts), PICTURES):
        names = {which: f"images/{which}-{index:05d}.webp" for which in ("before", "after")}
        evaluation = run.folder / "evaluation"
        sources = {which: evaluation / which / IMAGE_FOLDERS[max(run.steps)] / f"{index:05d}.png" for which in names}
        try:
            images = {which: decode_image(path.read_bytes(), MAX_PIXELS) for which, path in sources.items()}
        except (OSError, WireError):
            continue
        (folder / "images").mkdir(exist_ok=True)
        for which, image in images.items():
            image.thumbnail((PICTURE_EDGE, PICTURE_EDGE), Image.Resampling.LANCZOS)
            image.save(folder / names[which], "WEBP", quality=QUALITY)
        prompt = run.before.prompts[index]
        pictures.append(Picture(prompt, _in_cell(prompt), names["before"], names["after"]))
    return pictures


def _in_cell(text: str) -> str:
    """A prompt as it may stand in a table of Markdown."""
    line = " ".join(text.split()).replace("|", "\\|")
    return line if len(line) <= LONGEST_PROMPT else f"{line[:LONGEST_PROMPT]} ..."


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
